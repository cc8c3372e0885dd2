import { randomFillSync } from 'node:crypto';
import type { NativeSampling } from './addon';
import { invalid } from './errors';

/**
 * How the next token is drawn from the logits. The steps are applied in this order: repetition
 * penalty, logitBias with frequencyPenalty and presencePenalty, temperature, topK, topP, minP, then
 * one random number. A value out of range is ERR_INVALID_ARGUMENT.
 */
export interface SamplingOptions {
  /**
   * Divides the logits, from 0 to 1e6. 0, the default, is greedy: it selects the most likely token.
   */
  temperature?: number;
  /** Keep only the `topK` most likely tokens: an integer. Default 0: keep all. */
  topK?: number;
  /**
   * Keep only the most likely tokens whose probabilities add up to `topP`, above 0 and at most 1
   * (arXiv 1904.09751). Default 1: keep all.
   */
  topP?: number;
  /**
   * Keep only tokens whose probability is at least `minP` times the highest one, from 0 to 1
   * (arXiv 2407.01082). Default 0: keep all.
   */
  minP?: number;
  /**
   * For tokens that are in the sequence already: divides a positive logit, multiplies a negative
   * one (arXiv 1909.05858). From 1e-6 to 1e6. Default 1: no penalty.
   */
  repetitionPenalty?: number;
  /**
   * Numbers that are added to the logits of tokens, by token: from -1e6 to 1e6, or -Infinity, which
   * forbids the token. Default: none.
   */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>;
  /**
   * Is subtracted from the logit of a token for each time that this generation has drawn it, from
   * -2 to 2. Default 0: off.
   */
  frequencyPenalty?: number;
  /**
   * Is subtracted from the logit of each token that this generation has drawn, from -2 to 2.
   * Default 0: off.
   */
  presencePenalty?: number;
  /**
   * Key of the Philox-4x32-10 generator: an integer from 0 to 2^64 - 1. The same seed gives the
   * same tokens on the same device. Default: random.
   */
  seed?: number | bigint;
}

const MAX_SEED = 2n ** 64n - 1n;
const MAX_FACTOR = 1e6; // within float32, the type in which devices sample
const MAX_TOP_K = 2 ** 31 - 1;

/** Checks the options and fills in the defaults. Throws ERR_INVALID_ARGUMENT. */
export function resolveSampling(options: SamplingOptions): NativeSampling {
  const { temperature = 0, topK = 0, topP = 1, minP = 0, repetitionPenalty = 1, seed } = options;
  check(
    'temperature',
    temperature,
    () => temperature >= 0 && temperature <= MAX_FACTOR,
    `a number from 0 (greedy) to ${MAX_FACTOR}`,
  );
  check(
    'topK',
    topK,
    () => Number.isInteger(topK) && topK >= 0 && topK <= MAX_TOP_K,
    `an integer from 0 (all tokens) to ${MAX_TOP_K}`,
  );
  check('topP', topP, () => topP > 0 && topP <= 1, 'a number above 0 and at most 1 (off)');
  check('minP', minP, () => minP >= 0 && minP <= 1, 'a number from 0 (off) to 1');
  check(
    'repetitionPenalty',
    repetitionPenalty,
    () => repetitionPenalty >= 1 / MAX_FACTOR && repetitionPenalty <= MAX_FACTOR,
    `a number from ${1 / MAX_FACTOR} to ${MAX_FACTOR} (1: off)`,
  );
  return {
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    seed: seed === undefined ? randomSeed() : checkSeed(seed),
  };
}

// Filled for many calls at a time, which is faster.
const randomSeeds = new BigUint64Array(128);
let numSeedsUsed = randomSeeds.length;

function randomSeed(): bigint {
  if (numSeedsUsed === randomSeeds.length) {
    randomFillSync(randomSeeds);
    numSeedsUsed = 0;
  }
  return randomSeeds[numSeedsUsed++] as bigint;
}

/** Converts a seed to 64 bits. Throws ERR_INVALID_ARGUMENT. */
export function checkSeed(seed: number | bigint): bigint {
  if (typeof seed === 'bigint' || Number.isSafeInteger(seed)) {
    const value = BigInt(seed);
    if (value >= 0n && value <= MAX_SEED) return value;
  }
  throw invalid('seed', 'an integer from 0 to 2^64 - 1 (a bigint above 2^53 - 1)', seed);
}

/** Throws ERR_INVALID_ARGUMENT unless `value` is a number in [min, max]. `note` completes the message. */
export function checkNumber(
  name: string,
  value: unknown,
  min: number,
  max: number,
  note: string,
): void {
  check(
    name,
    value,
    () => (value as number) >= min && (value as number) <= max,
    `a number from ${min} to ${max} ${note}`,
  );
}

function check(name: string, value: unknown, isValid: () => boolean, expected: string): void {
  // The type first: comparisons coerce ('0.5' > 0) and throw a TypeError for a symbol.
  if (typeof value !== 'number' || !isValid()) throw invalid(name, expected, value);
}
