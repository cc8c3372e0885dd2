// npm run test:sessions [-- --count N] [--seed N]: damages the file of a saved session N times, by
// cuts, flipped bits, overwritten and appended bytes, and loads it: each must be rejected with
// ERR_SESSION_FILE. Then forges N files, whose hashes are right, with other numbers in the header,
// other tokens and other pages: each must be rejected with a code, or give a session that decodes or
// fails with a code. No page may leak, and the undamaged file must load at the end with the same
// logits. The last line of output is JSON. Uses the built package.

import { createHash } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

const { defaultModelDirectory, DiffqkvError, Model } = createRequire(import.meta.url)('../../dist/lib/index.js');

const { values } = parseArgs({
  options: { count: { type: 'string', default: '500' }, seed: { type: 'string', default: '1' } },
});
const count = Number(values.count);

let state = Number(values.seed) >>> 0;
/** An integer from 0 to `limit` - 1. */
function random(limit) {
  state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
  return Math.floor((state / 2 ** 32) * limit);
}

const folder = mkdtempSync(join(tmpdir(), 'diffqkv-sessions-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const file = join(folder, 'session');
const model = await Model.load(defaultModelDirectory, { device: 'cpu' });
const session = await model.createSession({ maxKvLen: 512, vType: 'i8' });
await session.prefill(model.tokenizer.encode('# tar\n> Archiving utility.\n'.repeat(12)));
await session.save(file);
const expected = await session.decode(5);
session.dispose();
const good = readFileSync(file);
const headerEnd = 16 + good.readUInt32LE(12) + 32;

/** A place in the file. Half of them are in the header, which is short, or at the end. */
function place() {
  const where = random(4);
  if (where === 0) return random(headerEnd);
  if (where === 1) return good.length - 1 - random(64);
  return random(good.length);
}

function damage() {
  const bytes = Buffer.from(good);
  const kind = ['cut', 'bit', 'bits', 'overwrite', 'append'][random(5)];
  if (kind === 'cut') return { kind, bytes: bytes.subarray(0, place()) };
  if (kind === 'append') return { kind, bytes: Buffer.concat([bytes, bytes.subarray(0, 1 + random(100))]) };
  if (kind === 'overwrite') {
    const from = place();
    const end = Math.min(from + 1 + random(4096), bytes.length);
    for (let i = from; i < end; i++) bytes[i] = random(256);
  } else {
    for (let i = 0; i < (kind === 'bit' ? 1 : 1 + random(8)); i++) bytes[place()] ^= 1 << random(8);
  }
  return { kind, bytes };
}

const sha256 = (bytes) => createHash('sha256').update(bytes).digest();
const numbers = [-1, 0, 1, 63, 64, 65, 1e9, 2 ** 31 - 1, 2 ** 31, 2 ** 53, 0.5, null, 'x', [], {}, true];

function forge() {
  const header = JSON.parse(good.subarray(16, headerEnd - 32).toString());
  const body = Buffer.from(good.subarray(headerEnd, -32));
  const numTokens = header.kvLen;
  const kind = ['header', 'model', 'tokens', 'pages'][random(4)];
  if (kind === 'header' || kind === 'model') {
    const fields = kind === 'model' ? header.model : header;
    const names = Object.keys(fields);
    for (let i = 0; i < 1 + random(3); i++) fields[names[random(names.length)]] = numbers[random(numbers.length)];
  } else if (kind === 'tokens') {
    for (let i = 0; i < 1 + random(3); i++) body.writeInt32LE(random(2 ** 32) | 0, 4 * random(numTokens));
  } else {
    const fill = [0, 0x7f, 0x80, 0xff, -1][random(5)];
    for (let i = 4 * numTokens; i < body.length; i++) body[i] = fill < 0 ? random(256) : fill;
  }
  const text = Buffer.from(JSON.stringify(header));
  const first = Buffer.concat([good.subarray(0, 12), Buffer.alloc(4), text]);
  first.writeUInt32LE(text.length, 12);
  const hashed = Buffer.concat([first, sha256(first), body]);
  return { kind, bytes: Buffer.concat([hashed, sha256(hashed)]) };
}

/** The code of a rejected load, or 'loaded' if the session works or fails with a code. */
async function outcome() {
  let loaded;
  try {
    loaded = await model.loadSession(file);
    await loaded.decode(5);
    return 'loaded';
  } catch (error) {
    if (!(error instanceof DiffqkvError) || error.code === 'ERR_INTERNAL') throw error;
    return loaded ? 'loaded' : error.code;
  } finally {
    loaded?.dispose();
  }
}

const outcomes = {};
let damaged = 0;
for (let i = 0; i < count; i++) {
  let { kind, bytes } = damage();
  while (bytes.equals(good)) ({ kind, bytes } = damage()); // such as two flips of one bit
  writeFileSync(file, bytes);
  const code = await outcome();
  if (code !== 'ERR_SESSION_FILE') {
    throw new Error(`a file damaged by ${kind} (trial ${i} of seed ${values.seed}): ${code}`);
  }
  damaged++;
  outcomes[kind] = (outcomes[kind] ?? 0) + 1;
}
let forged = 0;
for (let i = 0; i < count; i++) {
  const { kind, bytes } = forge();
  writeFileSync(file, bytes);
  const name = `forged ${kind}: ${await outcome()}`;
  forged++;
  outcomes[name] = (outcomes[name] ?? 0) + 1;
}
writeFileSync(file, good);
const last = await model.loadSession(file);
const logits = await last.decode(5);
if (!logits.every((value, i) => value === expected[i])) throw new Error('the undamaged file has other logits');
last.dispose();
await model.device.synchronize();
if (model.kvCache.pages !== 0) throw new Error(`${model.kvCache.pages} pages leaked`);
model.dispose();
console.log(JSON.stringify({ bytes: good.length, damaged, forged, outcomes }));
