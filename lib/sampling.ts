import { randomBytes } from 'node:crypto';
import type { NativeSampling } from './addon';
import { invalid } from './errors';

/**
 * How the next token is drawn from the logits, in this order: repetition penalty, temperature, topK, topP, minP, then one
 * random number. What is out of range is ERR_INVALID_ARGUMENT.
 */
export interface SamplingOptions {
  /** 0 (the default) takes the most likely token; above 0, up to 1e6, the logits are divided by it. */
  temperature?: number;
  /** Only the `topK` most likely tokens, an integer; 0 (the default) for all. */
  topK?: number;
  /** Only the most likely tokens whose probabilities add up to `topP`, in (0, 1] (arXiv 1904.09751). Default 1. */
  topP?: number;
  /** Only tokens at least `minP` times as likely as the most likely one, in [0, 1] (arXiv 2407.01082). Default 0. */
  minP?: number;
  /**
   * Logits of tokens already in the sequence are divided (where positive) or multiplied by it (arXiv 1909.05858); from 1e-6 to
   * 1e6, and 1 (the default) is off.
   */
  repetitionPenalty?: number;
  /** The same seed (the key of Philox-4x32-10) gives the same tokens on the same device: an integer in [0, 2^64). Default: a random one. */
  seed?: number | bigint;
}

const MAX_SEED = 2n ** 64n - 1n;
const MAX_FACTOR = 1e6; // far past any use, and within float32, in which devices sample
const MAX_TOP_K = 2 ** 31 - 1;

/** Checks the options and fills in the defaults. Throws ERR_INVALID_ARGUMENT with the value and its limit. */
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
  return { temperature, topK, topP, minP, repetitionPenalty, seed: resolveSeed(seed) };
}

function check(name: string, value: unknown, valid: () => boolean, wanted: string): void {
  // The type first: comparisons coerce ('0.5' > 0), and throw an error of their own for a symbol.
  if (typeof value !== 'number' || !valid()) throw invalid(name, wanted, value);
}

function resolveSeed(seed: number | bigint | undefined): bigint {
  if (seed === undefined) return randomBytes(8).readBigUInt64LE();
  if (typeof seed === 'bigint' || Number.isSafeInteger(seed)) {
    const value = BigInt(seed);
    if (value >= 0n && value <= MAX_SEED) return value;
  }
  throw invalid('seed', 'an integer from 0 to 2^64 - 1 (above 2^53 - 1 a bigint)', seed);
}
