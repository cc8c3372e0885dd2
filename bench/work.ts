// Calls to be timed, with their bytes and FLOPs. They alternate between sets of inputs, so that no input is in a cache.
import { kernels, type Tensor } from '../lib/index';
import { cacheBytes, decodeFlops, prefillFlops, selectiveBytes } from './arithmetic';
import { type Figure, type FigureInput, figure } from './figure';
import type { Limits } from './limits';
import { interleaveFor, mapStats, type Stats } from './measure';
import type { HeadShape } from './shapes';
import type { Bench } from './suite';
import { rotations } from './tensors';

export interface Work {
  call(turn: number): Promise<unknown>;
  /** The bytes that must be moved. `under` is the bandwidth that limits them. */
  bytes: number;
  under?: 'read' | 'copy';
  /** FLOPs of matrix products. */
  flops?: number;
}

/** Device memory of all sets of inputs: the `bytes` of a cell. */
export const rotatedBytes = (bench: Bench, bytesPerSet: number): number =>
  rotations(bytesPerSet, bench.device, bench.quick) * bytesPerSet;

/** The element of `list` for this turn. */
export const turnOf = <T>(list: readonly T[], turn: number): T => list[turn % list.length] as T;

export interface DecodeOptions {
  heads: HeadShape;
  kvLen: number;
  batchSize?: number;
  topK?: number;
  /** The lengths that the calls alternate between; default: kvLen. */
  lengths?: readonly number[];
}

const PAGE = 64;

/** Rows of K and V: up to a page more than kvLen, so that similar lengths share tensors. */
export const roomFor = (kvLen: number): number => (Math.floor(kvLen / PAGE) + 1) * PAGE;

/** Device memory of the inputs of `decodeWork`. */
export const decodeMemory = (bench: Bench, heads: HeadShape, kvLen: number, batchSize = 1): number =>
  rotatedBytes(bench, batchSize * roomFor(kvLen) * cacheBytes(heads));

/** Decode attention in bf16. */
export function decodeWork(
  bench: Bench,
  { heads, kvLen, batchSize = 1, topK, lengths = [kvLen] }: DecodeOptions,
): Work {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const { pool, device, quick } = bench;
  const room = roomFor(kvLen);
  const sets = rotations(batchSize * room * cacheBytes(heads), device, quick);
  const [q] = pool.take('bf16', [batchSize, numQHeads, headDimQk], 1) as [Tensor];
  const outs = pool.take('bf16', [batchSize, numQHeads, headDimVo], 2); // the second, because q may have the same shape
  const k = pool.take('bf16', [batchSize, room, numKHeads, headDimQk], sets);
  // K and V of the same shape share a list: V uses its second half.
  const same = numKHeads === numVHeads && headDimQk === headDimVo;
  const v = pool.take('bf16', [batchSize, room, numVHeads, headDimVo], same ? 2 * sets : sets).slice(-sets);
  const kvLens = lengths.map((length) => device.tensor('i32', [batchSize], new Int32Array(batchSize).fill(length)));
  const selectiveV = topK === undefined ? undefined : { topK };
  const mean = lengths.reduce((sum, length) => sum + length, 0) / lengths.length;
  return {
    call: (turn) =>
      kernels.attentionDecode({
        q,
        k: turnOf(k, turn),
        v: turnOf(v, turn),
        out: outs[1],
        kvLens: turnOf(kvLens, turn),
        selectiveV,
      }),
    bytes: batchSize * (topK === undefined ? mean * cacheBytes(heads) : selectiveBytes(heads, mean, topK)),
    flops: batchSize * decodeFlops(heads, mean),
  };
}

export function prefillWork(bench: Bench, heads: HeadShape, length: number, causal: boolean, batchSize = 1): Work {
  const { numQHeads, numKHeads, numVHeads, headDimQk, headDimVo } = heads;
  const take = (heads: number, dim: number, nth: number): Tensor =>
    bench.pool.take('bf16', [batchSize, length, heads, dim], nth)[nth - 1] as Tensor;
  const q = take(numQHeads, headDimQk, 1);
  const k = take(numKHeads, headDimQk, 2);
  const v = take(numVHeads, headDimVo, 3);
  const out = take(numQHeads, headDimVo, 4);
  return {
    call: () => kernels.attentionPrefill({ q, k, v, out, causal }),
    bytes: [q, k, v, out].reduce((sum, { byteLength }) => sum + byteLength, 0),
    flops: batchSize * prefillFlops(heads, length, causal),
  };
}

/** The least milliseconds of a call, and the name of the limit; null if the limit was not measured. */
export function limitOf(
  { bytes, under = 'read', flops = 0 }: Work,
  limits: Limits,
): { ms: number; name: string } | null {
  const bandwidth = under === 'read' ? limits.readGbPerS : limits.copyGbPerS;
  const moving = bandwidth && bytes / bandwidth.median / 1e6;
  const computing = flops > 0 ? limits.matrixGflopPerS && flops / limits.matrixGflopPerS.median / 1e6 : 0;
  if (moving === null || computing === null) return null;
  return moving >= computing
    ? { ms: moving, name: `bytes at the ${under} bandwidth` }
    : { ms: computing, name: 'FLOPs at the matrix rate' };
}

const SAMPLE_MS = 20; // long enough to make the overhead of the clock negligible
const MOST_CALLS = 512;

/**
 * Milliseconds of a call of each work. The works alternate. A sample is the mean of `callsPerSample` calls that are queued
 * together; by default, as many as take SAMPLE_MS.
 */
export async function timeWorks<Name extends string>(
  bench: Bench,
  works: Record<Name, Work>,
  seconds: number,
  callsPerSample?: number,
): Promise<Record<Name, Stats>> {
  const sampler = async (work: Work): Promise<() => Promise<number>> => {
    let turn = 0;
    const time = async (calls: number): Promise<number> => {
      const queue = () => Promise.all(Array.from({ length: calls }, () => work.call(turn++)));
      return (await bench.device.time(queue)) / calls;
    };
    await time(1); // the first call of a shape allocates and compiles
    const once = await time(1);
    const enough = bench.device.info.kind === 'emulated' ? 1 : Math.ceil(((bench.quick ? 0.25 : 1) * SAMPLE_MS) / once);
    const calls = callsPerSample ?? Math.max(1, Math.min(MOST_CALLS, enough));
    return () => time(calls);
  };
  const variants = {} as Record<Name, () => Promise<number>>;
  for (const name of Object.keys(works) as Name[]) variants[name] = await sampler(works[name]);
  const rounds = bench.quick ? { minRounds: 3, maxRounds: 15 } : { minRounds: 5, maxRounds: 50 };
  return interleaveFor(variants, { seconds, ...rounds, check: bench.check });
}

/** The time of a call and its limit, both multiplied by `times`. */
export function timeFigure(
  { limits }: Bench,
  work: Work,
  ms: Stats,
  input: Pick<FigureInput, 'name' | 'group' | 'at'> & Partial<FigureInput>,
  { unit = 'ms', times = 1 }: { unit?: 'ms' | 'us'; times?: number } = {},
): Figure {
  const factor = times * (unit === 'us' ? 1000 : 1);
  const scaled = mapStats(ms, (value) => value * factor);
  const limit = limitOf(work, limits);
  return figure({
    value: scaled.median,
    unit,
    better: 'less',
    limit: limit && limit.ms * factor,
    limitName: limit?.name ?? 'not measured',
    target: null,
    samples: { [unit]: scaled },
    bytes: work.bytes * times,
    ...(work.flops === undefined ? {} : { flops: work.flops * times }),
    ...input,
  });
}
