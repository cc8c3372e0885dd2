// Defines sampling: the filters of csrc/backend/ops.h in order, and the random number for the draw.

export interface Sampling {
  temperature: number;
  topK: number; // 0: all
  topP: number; // 1: off
  minP: number; // 0: off
  repetitionPenalty: number; // 1: off
  seed: bigint;
  /** Added to the logits of tokens; -Infinity forbids a token. */
  biases?: ReadonlyMap<number, number>;
  /** Bit t % 32 of word t / 32: whether token t can be drawn. */
  allowed?: Uint32Array;
}

/** Philox-4x32-10 (Salmon et al., SC 2011): four 32-bit words from a counter of four and a key of two. */
export function philox4x32(counter: readonly bigint[], key: readonly bigint[]): bigint[] {
  const mask = 0xffffffffn;
  let [c0, c1, c2, c3] = counter as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key as [bigint, bigint];
  for (let round = 0; round < 10; round++) {
    const a = 0xd2511f53n * c0;
    const b = 0xcd9e8d57n * c2;
    [c0, c1, c2, c3] = [(b >> 32n) ^ c1 ^ k0, b & mask, (a >> 32n) ^ c3 ^ k1, a & mask];
    k0 = (k0 + 0x9e3779b9n) & mask;
    k1 = (k1 + 0xbb67ae85n) & mask;
  }
  return [c0, c1, c2, c3];
}

/** Uniform in [0, 1): the first 53 bits of Philox at counter `step`, keyed by `seed`. */
export function uniform(seed: bigint, step: number): number {
  const counter = BigInt(step);
  const [first, second] = philox4x32(
    [counter & 0xffffffffn, counter >> 32n, 0n, 0n],
    [seed & 0xffffffffn, seed >> 32n],
  ) as [bigint, bigint];
  return Number((first << 21n) | (second >> 11n)) * 2 ** -53;
}

/**
 * The token drawn from `logits` after the tokens of `history`. Also returns how close the draw was
 * to another token.
 */
export function sample(
  logits: ArrayLike<number>,
  history: readonly number[],
  sampling: Sampling,
  step: number,
): { token: number; margin: number } {
  const { temperature, topK, topP, minP, repetitionPenalty, seed } = sampling;
  const scores = Array.from(logits);
  for (const token of new Set(history)) {
    const score = scores[token] as number;
    scores[token] = score > 0 ? score / repetitionPenalty : score * repetitionPenalty;
  }
  for (const [token, bias] of sampling.biases ?? []) {
    scores[token] = bias === Number.NEGATIVE_INFINITY ? bias : (scores[token] as number) + bias;
  }
  const { allowed } = sampling;
  if (allowed !== undefined) {
    const isAllowed = (token: number) => (((allowed[token >> 5] as number) >>> (token & 31)) & 1) !== 0;
    for (const token of scores.keys()) if (!isAllowed(token)) scores[token] = Number.NEGATIVE_INFINITY;
  }
  // Most likely first; of equal ones the lower token first.
  let kept = scores.map((score, token) => ({ score, token })).sort((a, b) => b.score - a.score || a.token - b.token);
  if (temperature === 0) {
    const [first, second] = kept;
    return {
      token: (first as { token: number }).token,
      margin: second ? (first as { score: number }).score - second.score : 1,
    };
  }
  if (topK > 0) kept = kept.slice(0, topK);
  const largest = (kept[0] as { score: number }).score;
  let weighed = kept.map(({ score, token }) => ({ token, weight: Math.exp((score - largest) / temperature) }));
  const sum = (list: typeof weighed): number => list.reduce((total, { weight }) => total + weight, 0);
  if (topP < 1) {
    const wanted = topP * sum(weighed);
    let mass = 0;
    let count = 0;
    while (count < weighed.length && (count === 0 || mass < wanted))
      mass += (weighed[count++] as { weight: number }).weight;
    weighed = weighed.slice(0, count);
  }
  weighed = weighed.filter(({ weight }) => weight >= minP).sort((a, b) => a.token - b.token);
  const drawn = uniform(seed, step) * sum(weighed);
  let mass = 0;
  for (const { token, weight } of weighed) {
    if (mass + weight > drawn) return { token, margin: Math.min(drawn - mass, mass + weight - drawn) / sum(weighed) };
    mass += weight;
  }
  return { token: (weighed[weighed.length - 1] as { token: number }).token, margin: 0 };
}
