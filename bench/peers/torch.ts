// Attention by PyTorch on the GPU, measured by bench/peers/torch_attention.py, and by diffqkv at the same shapes.
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type Device, kernels, listDevices, openDevice, type Tensor } from '../../lib/index';
import { type Figure, figure } from '../figure';
import { NO_LIMITS } from '../limits';
import { mapStats } from '../measure';
import { randomBf16 } from '../random';
import type { Bench } from '../suite';
import { TensorPool } from '../tensors';
import { decodeWork, prefillWork, timeWorks } from '../work';
import { type Peer, type PeersContext, scratchFolder } from './run';
import { PeerMissing, peersFolder } from './worker';

/** One shape, and the file with the float32 outputs of some of its queries: [batch, rows, heads, dim]. */
interface Case extends Pick<Figure, 'name' | 'group' | 'bytes' | 'flops'> {
  at: { heads: string; dim: number; prefix: number; batch: number };
  qLen: number;
  rows: number[];
  file: string;
}

interface Answer {
  version: string;
  device: string;
  /** Its backends. One that rejects some shapes is still measured, and names the first of them. */
  peers: Peer[];
  figures: Figure[];
  cases: Case[];
  /** The largest error of each, relative to the reference. */
  errors: Record<string, number>;
}

/**
 * The largest allowed error of an output vector, relative to its length. Kernels round probabilities and outputs to bf16,
 * each by up to 2^-8 and by about 2^-9.3 on average: together by up to 2^-7, and by about 2^-9 on average. An omitted block
 * of 64 keys changes a vector by about sqrt(64 / keys), which exceeds this bound up to 256k keys.
 */
const BOUND = 2 ** -6;
const PERIOD = 1_000_003; // prime, so that no two rows of a tensor are equal

type Inputs = Record<'q' | 'k' | 'v', Uint16Array>;

export async function measureTorch(context: PeersContext, python?: string): Promise<string> {
  if (python === undefined) throw new PeerMissing('--python does not name a Python with PyTorch');
  context.progress('PyTorch: attention');
  const folder = scratchFolder();
  try {
    const inputs: Inputs = { q: randomBf16(PERIOD, 1), k: randomBf16(PERIOD, 2), v: randomBf16(PERIOD, 3) };
    for (const [name, numbers] of Object.entries(inputs)) fs.writeFileSync(path.join(folder, name), numbers);
    const size = context.tiny ? ['--tiny'] : context.quick ? ['--quick'] : [];
    const answer = await runPython(python, ['--folder', folder, '--bound', String(BOUND), ...size]);
    const errors = { ...answer.errors };
    context.setup.torch = { device: answer.device, bound: BOUND, errors };
    context.peers.push(...answer.peers);
    if (answer.figures.length === 0) throw new PeerMissing('none of its backends could be measured');
    context.figures.push(...answer.figures);
    await oursBeside(answer.cases, inputs, folder, errors, context);
    return answer.version;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

async function runPython(python: string, args: string[]): Promise<Answer> {
  const child = spawn(python, [path.join(peersFolder, 'torch_attention.py'), ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const kill = () => child.kill();
  process.once('exit', kill);
  const parts: Buffer[] = [];
  child.stdout.on('data', (part) => parts.push(part));
  try {
    await new Promise<void>((resolve, reject) => {
      child.on('error', (error) => reject(new PeerMissing(`cannot run ${python}: ${error.message}`)));
      child.on('close', (status, signal) => {
        if (status === 0) resolve();
        else reject(new PeerMissing(`torch_attention.py ended with ${signal ?? `status ${status}`}`));
      });
    });
  } finally {
    process.removeListener('exit', kill);
  }
  return JSON.parse(Buffer.concat(parts).toString());
}

/** The figures of diffqkv at the same shapes, on the GPU if there is one. They are measured after those of PyTorch. */
async function oursBeside(
  cases: readonly Case[],
  inputs: Inputs,
  folder: string,
  errors: Record<string, number>,
  { quick, tiny, progress, figures }: PeersContext,
): Promise<void> {
  const gpu = listDevices().find(({ kind, usable }) => kind === 'cuda' && usable);
  const device = await openDevice(gpu === undefined ? 'cpu' : 'cuda');
  const pool = new TensorPool(device);
  const bench: Bench = {
    device,
    quick: quick || tiny,
    limits: NO_LIMITS,
    ceilings: null,
    pool,
    progress,
    check: () => {},
  };
  try {
    for (const { name, at, group, bytes, flops, qLen, rows, file } of cases) {
      const { dim, prefix: kvLen, batch } = at;
      const [numQHeads, numKHeads, numVHeads] = at.heads.split('/').map(Number) as [number, number, number];
      const heads = { numQHeads, numKHeads, numVHeads, headDimQk: dim, headDimVo: dim };
      const raw = fs.readFileSync(path.join(folder, file));
      const expected = new Float32Array(raw.buffer.slice(raw.byteOffset, raw.byteOffset + raw.byteLength));
      const out = await outputOf(device, inputs, { heads, batch, qLen, kvLen, isDecode: bytes !== undefined });
      const got = rowsOf(out, rows, qLen, numQHeads * dim);
      const error = vectorError(got, expected, dim);
      if (!(error <= BOUND)) throw new Error(`${name}: the output of diffqkv is wrong by ${error}`);
      errors.diffqkv = Math.max(errors.diffqkv ?? 0, error);
      const work =
        bytes !== undefined
          ? decodeWork(bench, { heads, kvLen, batchSize: batch })
          : prefillWork(bench, heads, kvLen, true, batch);
      const { ms } = await timeWorks(bench, { ms: work }, quick ? 0.5 : 1);
      pool.trim(0);
      const rate = mapStats(ms, (value) =>
        bytes !== undefined ? bytes / value / 1e6 : (flops as number) / value / 1e9,
      );
      figures.push(
        figure({
          name: `${name}: diffqkv`,
          value: rate.median,
          unit: bytes !== undefined ? 'GB/s' : 'TFLOP/s',
          better: 'more',
          limit: null,
          limitName: 'not measured',
          target: null,
          samples: { ms, rate },
          group,
          at: { ...at, who: 'diffqkv' },
          ...(bytes !== undefined ? { bytes } : { flops }),
        }),
      );
    }
  } finally {
    pool.trim(0);
    device.dispose();
  }
}

interface OutputShape {
  heads: { numQHeads: number; numKHeads: number; numVHeads: number; headDimQk: number };
  batch: number;
  qLen: number;
  kvLen: number;
  isDecode: boolean;
}

/** The output [batch, qLen, numQHeads, dim] for the inputs that the peers were compared on. */
async function outputOf(device: Device, inputs: Inputs, { heads, batch, qLen, kvLen, isDecode }: OutputShape) {
  const { numQHeads, numKHeads, numVHeads, headDimQk: dim } = heads;
  const tensors: Tensor[] = [];
  const tensor = (numbers: Uint16Array, shape: number[]): Tensor => {
    const all = new Uint16Array(shape.reduce((product, size) => product * size, 1));
    for (let i = 0; i < all.length; i += numbers.length) all.set(numbers.subarray(0, all.length - i), i);
    const made = device.tensor('bf16', shape, all);
    tensors.push(made);
    return made;
  };
  try {
    const q = tensor(inputs.q, isDecode ? [batch, numQHeads, dim] : [batch, qLen, numQHeads, dim]);
    const k = tensor(inputs.k, [batch, kvLen, numKHeads, dim]);
    const v = tensor(inputs.v, [batch, kvLen, numVHeads, dim]);
    const out = await (isDecode
      ? kernels.attentionDecode({ q, k, v })
      : kernels.attentionPrefill({ q, k, v, causal: true }));
    tensors.push(out);
    return await out.read();
  } finally {
    for (const made of tensors) made.dispose();
  }
}

/** Some rows of each sequence of [batch, length, width]. */
function rowsOf(values: Float32Array, rows: readonly number[], length: number, width: number): Float32Array {
  const batch = values.length / length / width;
  const out = new Float32Array(batch * rows.length * width);
  for (let i = 0; i < batch; ++i)
    rows.forEach((row, j) => {
      const from = (i * length + row) * width;
      out.set(values.subarray(from, from + width), (i * rows.length + j) * width);
    });
  return out;
}

/** The largest error of a vector of `dim` numbers, relative to its length. */
export function vectorError(got: Float32Array, expected: Float32Array, dim: number): number {
  if (got.length !== expected.length) return Infinity;
  let worst = 0;
  for (let start = 0; start < got.length; start += dim) {
    let [apart, length] = [0, 0];
    for (let i = start; i < start + dim; ++i) {
      apart += ((got[i] as number) - (expected[i] as number)) ** 2;
      length += (expected[i] as number) ** 2;
    }
    worst = Math.max(worst, Math.sqrt(apart / length));
  }
  return worst;
}
