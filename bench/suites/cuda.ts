// Suite cuda: the CUDA kernels at Sigma's shapes, by the device's own clock, beside the rates of bench/ceilings/gpu.cu
// measured in the same run. Inputs are rotated over more memory than the L2 cache holds.
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';

import { type Device, kernels, openDevice, type Tensor } from '../../lib/index';
import { type Figure, figure, type Suite, type SuiteContext, type SuiteResult } from '../figure';
import { projectRoot } from '../machine';
import { interleave, mapStats, type Stats, summarize } from '../measure';
import { randomBf16 } from '../random';
import { type HeadShape, headsName, SIGMA_HEADS, STD_HEADS } from '../shapes';

interface Ceilings {
  copyGbPerS: number[];
  readGbPerS: number[];
  mmaTflops: number[];
}

const ROTATED_BYTES = 512 * 2 ** 20; // ten times the L2 of any GPU yet

function measureCeilings(): Ceilings | null {
  const program = path.join(projectRoot, 'build-cmake', 'gpu_ceilings');
  if (!fs.existsSync(program)) spawnSync('cmake', ['--build', path.dirname(program), '--target', 'gpu_ceilings']);
  const { status, stdout } = spawnSync(program, [], { encoding: 'utf8' });
  return status === 0 ? (JSON.parse(stdout) as Ceilings) : null;
}

/** Work to be timed: one call, and what it moves or computes. */
interface Work {
  call(turn: number): Promise<unknown>;
  bytes?: number;
  flops?: number;
  dispose(): void;
}

const random = (device: Device, shape: number[], seed: number): Tensor =>
  device.tensor(
    'bf16',
    shape,
    randomBf16(
      shape.reduce((a, b) => a * b),
      seed,
    ),
  );

/** Copies of the inputs that are read, as many as ROTATED_BYTES asks for. */
function rotated<T>(bytes: number, most: number, make: (seed: number) => T): T[] {
  return Array.from({ length: Math.max(1, Math.min(most, Math.ceil(ROTATED_BYTES / bytes))) }, (_, i) => make(i + 1));
}

function decodeWork(device: Device, heads: HeadShape, kvLen: number): Work {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const bytes = 2 * kvLen * (numKHeads * headDimQk + numVHeads * headDimVo);
  const q = random(device, [1, numQHeads, headDimQk], 99);
  const out = random(device, [1, numQHeads, headDimVo], 98);
  const caches = rotated(bytes, 64, (seed) => ({
    k: random(device, [1, kvLen, numKHeads, headDimQk], seed),
    v: random(device, [1, kvLen, numVHeads, headDimVo], seed + 1000),
  }));
  return {
    call: (turn) => kernels.attentionDecode({ q, out, ...(caches[turn % caches.length] as { k: Tensor; v: Tensor }) }),
    bytes,
    dispose: () => {
      for (const tensor of [q, out, ...caches.flatMap(({ k, v }) => [k, v])]) tensor.dispose();
    },
  };
}

function prefillWork(device: Device, heads: HeadShape, length: number, causal: boolean): Work {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const q = random(device, [1, length, numQHeads, headDimQk], 1);
  const k = random(device, [1, length, numKHeads, headDimQk], 2);
  const v = random(device, [1, length, numVHeads, headDimVo], 3);
  const out = random(device, [1, length, numQHeads, headDimVo], 4);
  return {
    call: () => kernels.attentionPrefill({ q, k, v, out, causal }),
    flops: 2 * numQHeads * (headDimQk + headDimVo) * length * (causal ? (length + 1) / 2 : length),
    dispose: () => {
      for (const tensor of [q, k, v, out]) tensor.dispose();
    },
  };
}

function matmulWork(device: Device, tokens: number, inFeatures: number, outFeatures: number): Work {
  const bytes = 2 * inFeatures * outFeatures;
  const x = random(device, [tokens, inFeatures], 1);
  const out = random(device, [tokens, outFeatures], 2);
  const weights = rotated(bytes, 64, (seed) => random(device, [outFeatures, inFeatures], seed + 2));
  return {
    call: (turn) => kernels.matmul({ x, weight: weights[turn % weights.length] as Tensor, out }),
    ...(tokens <= 8 ? { bytes } : { flops: bytes * tokens }),
    dispose: () => {
      for (const tensor of [x, out, ...weights]) tensor.dispose();
    },
  };
}

/** One figure: the median of several samples, each the mean of `calls` calls by the device's clock. */
async function measure(device: Device, name: string, work: Work, limits: Limits, quick: boolean): Promise<Figure> {
  const calls = device.info.kind === 'cuda' ? 20 : 1;
  let turn = 0;
  const sample = async (): Promise<number> => {
    const ms = await device.time(async () => {
      await Promise.all(Array.from({ length: calls }, () => work.call(turn++)));
    });
    return ms / calls;
  };
  const { ms } = await interleave({ ms: sample }, { warmUp: 2, rounds: quick ? 5 : 15 });
  const { bytes, flops } = work;
  const rate = mapStats(ms, (value) => (bytes !== undefined ? bytes / value / 1e6 : (flops as number) / value / 1e9));
  return figure({
    name,
    value: rate.median,
    unit: bytes !== undefined ? 'GB/s' : 'TFLOP/s',
    limit: (bytes !== undefined ? limits.read : limits.mma)?.median ?? null,
    limitName: bytes !== undefined ? 'read bandwidth' : 'rate of mma.sync',
    better: 'more',
    target: null,
    samples: { ms, rate },
  });
}

interface Limits {
  read: Stats | null;
  mma: Stats | null;
}

async function run({ deviceId, quick, progress }: SuiteContext): Promise<SuiteResult> {
  const device = await openDevice(deviceId as Parameters<typeof openDevice>[0]);
  try {
    const ceilings = device.info.kind === 'cuda' ? measureCeilings() : null;
    if (ceilings === null) progress('the limits of this device could not be measured: figures stand without them');
    const limits: Limits = {
      read: ceilings && summarize(ceilings.readGbPerS),
      mma: ceilings && summarize(ceilings.mmaTflops),
    };
    const heads128 = (heads: HeadShape): HeadShape => ({ ...heads, headDimQk: 128, headDimVo: 128 });
    const figures: Figure[] = [];
    const add = async (name: string, make: () => Work): Promise<void> => {
      progress(name);
      const work = make();
      try {
        figures.push(await measure(device, name, work, limits, quick));
      } finally {
        work.dispose();
        await device.synchronize();
      }
    };
    const long = device.info.kind === 'cuda'; // the emulation is there to show that the suite runs
    for (const kvLen of long ? [2048, 4096, 16384, 32768, ...(quick ? [] : [131072])] : [256]) {
      for (const heads of [SIGMA_HEADS, STD_HEADS, heads128(SIGMA_HEADS), heads128(STD_HEADS)])
        await add(`decode attention ${headsName(heads)} x ${heads.headDimQk}, ${kvLen} tokens`, () =>
          decodeWork(device, heads, kvLen),
        );
    }
    for (const length of long ? [512, 2048, ...(quick ? [] : [8192, 32768])] : [32]) {
      for (const causal of [true, false])
        await add(`prefill attention 32/4/16 x 64, ${length} tokens${causal ? ', causal' : ''}`, () =>
          prefillWork(device, SIGMA_HEADS, length, causal),
        );
      await add(`prefill attention 32/4/16 x 128, ${length} tokens, causal`, () =>
        prefillWork(device, heads128(SIGMA_HEADS), length, true),
      );
    }
    const matrices = long
      ? [[2048, 6144] as const, [6144, 2048] as const, [4096, 14336] as const]
      : [[64, 96] as const];
    for (const [inFeatures, outFeatures] of matrices) {
      for (const tokens of long ? [1, 4, 8, 64, 512, 4096] : [1, 16])
        await add(`matmul ${tokens} x ${inFeatures} -> ${outFeatures}`, () =>
          matmulWork(device, tokens, inFeatures, outFeatures),
        );
    }
    return { setup: { dtype: 'bf16', batchSize: 1 }, device: { ...device.info }, ceilings: { ...ceilings }, figures };
  } finally {
    device.dispose();
  }
}

export const cudaSuite: Suite = {
  description: 'the CUDA kernels at the shapes of Sigma-1.5B and 10B, on a GPU',
  devices: ['cuda', 'emulated'],
  run,
};
