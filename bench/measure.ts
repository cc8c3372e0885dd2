// Timing: warm-up, several samples, and their median, spread and count.

/** Samples of one quantity, in the unit of their figure. */
export interface Stats {
  median: number;
  min: number;
  max: number;
  count: number;
}

/** The median of an even number of samples is the mean of the middle two. */
export function summarize(samples: readonly number[]): Stats {
  if (samples.length === 0) throw new Error('summarize: no samples');
  const sorted = [...samples].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] as number;
  return {
    median: sorted.length % 2 === 1 ? upper : (upper + (sorted[middle - 1] as number)) / 2,
    min: sorted[0] as number,
    max: sorted[sorted.length - 1] as number,
    count: sorted.length,
  };
}

/** The same samples after a monotone change of unit, such as milliseconds to GB/s. */
export function mapStats(stats: Stats, convert: (value: number) => number): Stats {
  const [a, b] = [convert(stats.min), convert(stats.max)];
  return { median: convert(stats.median), min: Math.min(a, b), max: Math.max(a, b), count: stats.count };
}

/**
 * In each round, takes one sample (or a list of samples) of every variant, so that disturbances of the machine affect all
 * variants alike. The first `warmUp` rounds are not counted. `onRound` runs after each round, counted from 1 - warmUp.
 */
export async function interleave<Name extends string>(
  variants: Record<Name, () => Promise<number | number[]>>,
  { warmUp, rounds, onRound }: { warmUp: number; rounds: number; onRound?: (round: number) => Promise<void> },
): Promise<Record<Name, Stats>> {
  const names = Object.keys(variants) as Name[];
  const samples = new Map<Name, number[]>(names.map((name) => [name, []]));
  for (let round = 0; round < warmUp + rounds; ++round) {
    for (const name of names) {
      const sample = await variants[name]();
      if (round >= warmUp) samples.get(name)?.push(...[sample].flat());
    }
    await onRound?.(round + 1 - warmUp);
  }
  const entries = names.map((name) => [name, summarize(samples.get(name) ?? [])]);
  return Object.fromEntries(entries) as Record<Name, Stats>;
}

export interface SampleOptions {
  /** The approximate time of all samples together. */
  seconds: number;
  minRounds: number;
  maxRounds: number;
  /** Called before each round. An exception from it ends the measurement. */
  check?: () => void;
}

/** Like `interleave`, for as many rounds as the time allows. The first round is a warm-up that estimates the time. */
export async function interleaveFor<Name extends string>(
  variants: Record<Name, () => Promise<number | number[]>>,
  { seconds, minRounds, maxRounds, check }: SampleOptions,
): Promise<Record<Name, Stats>> {
  check?.();
  const start = performance.now();
  await interleave(variants, { warmUp: 0, rounds: 1 });
  const fit = Math.floor((seconds * 1000) / (performance.now() - start)) - 1;
  const rounds = Math.max(minRounds, Math.min(maxRounds, fit));
  return interleave(variants, { warmUp: 0, rounds, onRound: async () => check?.() });
}
