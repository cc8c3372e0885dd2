// Loads and uses hostile tokenizers. Prints { cases: { name: { code, ms, heldMs } }, growthMb }: the
// code of the error or null, the time it took, the longest block of the event loop, and the growth
// of the resident memory after the first case.
//   node --expose-gc hostile_tokenizers.cjs DIRECTORY main|thread [NAME ...]
// DIRECTORY is an empty directory for the files. `thread`: everything runs in a worker thread. With
// names, only these cases run.
const { execFileSync } = require('node:child_process');
const { mkdirSync, symlinkSync, writeFileSync } = require('node:fs');
const { join } = require('node:path');
const { monitorEventLoopDelay } = require('node:perf_hooks');
const { setTimeout: sleep } = require('node:timers/promises');
const { Worker, isMainThread } = require('node:worker_threads');
const { Tokenizer } = require('../../dist/lib/index.js');

const base = {
  ...{ version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null },
  ...{ pre_tokenizer: null, post_processor: null, decoder: null },
  model: { type: 'BPE', vocab: { a: 0, b: 1, x: 2 }, merges: [] },
};
const isolated = (Regex) => ({ type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false });
const grow = (n) => Array(n).fill({ type: 'Replace', pattern: { String: 'a' }, content: 'a'.repeat(10) });
/** tokenizer.json with a part that nests `depth` times. */
const nest = (part, key, depth) =>
  JSON.stringify({ ...base, [part]: 0 }).replace(
    `"${part}":0`,
    `"${part}":${`{"type":"Sequence","${key}":[`.repeat(depth)}${']}'.repeat(depth)}`,
  );
const added = (parts) => ({ content: '<x>', special: true, normalized: false, ...parts });
const manyWords = () => Object.fromEntries(Array.from({ length: 1_500_000 }, (_, i) => [`word${i}wordwordword`, i]));

/** The files of a directory, tokenizer.json first, and what to do with the tokenizer. */
const cases = {
  'not JSON': { json: '{' },
  'deep JSON': { json: '['.repeat(1e6) },
  'a list': { json: '[]' },
  'no vocabulary': { json: { ...base, model: { type: 'BPE' } } },
  'a vocabulary of 45 MB': { json: () => ({ ...base, model: { type: 'BPE', vocab: manyWords(), merges: [] } }) },
  'a file of 65 MB': { json: () => `{"x":"${'x'.repeat(65 << 20)}"}` },
  'a config of 9 MB': { json: base, 'tokenizer_config.json': () => `{"x":"${'x'.repeat(9 << 20)}"}` },
  'a template of 2 MB': { json: base, 'chat_template.jinja': () => 'x'.repeat(2 << 20) },
  'an id of 2^31': { json: { ...base, model: { type: 'BPE', vocab: { a: 0, b: 2 ** 31 }, merges: [] } } },
  'an id of 2^53': { json: { ...base, model: { type: 'BPE', vocab: { a: 0, b: 2 ** 53 }, merges: [] } } },
  'an added token without content': { json: { ...base, added_tokens: [{ id: 3 }] } },
  'a token of the wrong type': { json: { ...base, added_tokens: [added({ content: 5 })] } },
  'an unknown model': { json: { ...base, model: { type: 'Other', vocab: {} } } },
  'an unknown normalizer': { json: { ...base, normalizer: { type: 'Other' } } },
  'an unknown decoder': { json: { ...base, decoder: { type: 'Other' } } },
  'a damaged table': { json: { ...base, normalizer: { type: 'Precompiled', precompiled_charsmap: 'AAAA' } } },
  'nested normalizers': { json: nest('normalizer', 'normalizers', 100) },
  'deeply nested normalizers': { json: nest('normalizer', 'normalizers', 20_000) },
  'nested decoders': { json: nest('decoder', 'decoders', 100) },
  'deeply nested decoders': { json: nest('decoder', 'decoders', 20_000) },
  'an invalid pattern': { json: { ...base, pre_tokenizer: isolated('(') } },
  'a pattern of 1 MB': { json: { ...base, pre_tokenizer: isolated('(a|b)'.repeat(200_000)) } },
  'a normalizer that multiplies text': { json: { ...base, normalizer: { type: 'Sequence', normalizers: grow(12) } } },
  'a post-processor without its token': {
    json: {
      ...base,
      post_processor: {
        type: 'TemplateProcessing',
        single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
        ...{ pair: [], special_tokens: {} },
      },
    },
  },
  'a pattern that backtracks': {
    json: { ...base, pre_tokenizer: isolated('(a+)+$') },
    use: (tokenizer) => tokenizer.encodeAsync(`${'a'.repeat(40)}b`),
  },
  'a merge of an unknown piece': { json: { ...base, model: { ...base.model, merges: ['q r'] } } },
  'a decoder that multiplies text': {
    json: { ...base, decoder: { type: 'Sequence', decoders: grow(12) } },
    use: (tokenizer) => tokenizer.decode([0]),
  },
  'a FIFO': { json: 'FIFO' },
  'a FIFO as config': { json: base, 'tokenizer_config.json': 'FIFO' },
  'a FIFO as template': { json: base, 'chat_template.jinja': 'FIFO' },
  'a device': { json: 'DEVICE' },
  'a directory': { json: 'DIRECTORY' },
  'a text of 1 MB': { json: base, use: (tokenizer) => tokenizer.encodeAsync('ab'.repeat(1 << 19)) },
};

function write(file, content) {
  if (content === 'FIFO') execFileSync('mkfifo', [file]);
  else if (content === 'DEVICE') symlinkSync('/dev/zero', file);
  else if (content === 'DIRECTORY') mkdirSync(file);
  else {
    const value = typeof content === 'function' ? content() : content;
    writeFileSync(file, typeof value === 'string' ? value : JSON.stringify(value));
  }
}

async function collect() {
  for (let i = 0; i < 6; i++) {
    global.gc?.();
    await sleep(20);
  }
}

/** A function of its own, because the frame of `main` would keep the last tokenizer. */
async function attempt(name, directory) {
  try {
    const tokenizer = await Tokenizer.fromDirectory(directory);
    await cases[name].use?.(tokenizer);
    return null;
  } catch (error) {
    return error.code ?? `${error}`;
  }
}

async function main(root, names) {
  const wanted = Object.entries(cases).filter(([name]) => names.length === 0 || names.includes(name));
  const directories = wanted.map(([name, { json, use: _, ...files }], i) => {
    const directory = join(root, `${i}`);
    mkdirSync(directory);
    for (const [file, content] of Object.entries({ 'tokenizer.json': json, ...files })) {
      write(join(directory, file), content);
    }
    return [name, directory];
  });
  await collect();
  const monitor = monitorEventLoopDelay({ resolution: 1 });
  monitor.enable();
  const results = {};
  let before = 0;
  for (const [name, directory] of directories) {
    await collect();
    monitor.reset();
    await sleep(5); // the monitor skips the first tick after a reset
    const start = performance.now();
    const code = await attempt(name, directory);
    const ms = performance.now() - start;
    await sleep(5);
    results[name] = { code, ms, heldMs: monitor.max / 1e6 };
    if (before === 0) {
      await collect();
      before = process.memoryUsage.rss();
    }
  }
  await sleep(200);
  await collect();
  const growthMb = (process.memoryUsage.rss() - before) / 2 ** 20;
  console.log(JSON.stringify({ cases: results, growthMb }));
}

const [directory, thread, ...names] = process.argv.slice(2);
if (isMainThread && thread === 'thread') {
  new Worker(__filename, { argv: [directory, 'main', ...names] });
} else {
  main(directory, names);
}
