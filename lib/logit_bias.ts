import { types } from 'node:util';
import type { NativeBiases } from './addon';
import { invalid, invalidArgument } from './errors';
import { checkNumber, type SamplingOptions } from './sampling';

const MAX_BIAS = 1e6; // within float32, the type in which devices sample
const MAX_PENALTY = 2;

/**
 * What logitBias, frequencyPenalty and presencePenalty add to the logits of tokens before the next
 * draw.
 */
export class LogitBiases {
  readonly #given: ReadonlyMap<number, number>;
  readonly #frequencyPenalty: number;
  readonly #presencePenalty: number;
  /** How often each token was drawn. */
  readonly #counts = new Map<number, number>();
  /** In rising order of tokens; the first #length are in use. */
  #tokens: Int32Array;
  #values: Float32Array;
  #length = 0;

  private constructor(given: Map<number, number>, frequency: number, presence: number) {
    this.#given = given;
    this.#frequencyPenalty = frequency;
    this.#presencePenalty = presence;
    this.#tokens = Int32Array.from(given.keys()).sort();
    this.#values = Float32Array.from(this.#tokens, (token) => given.get(token) as number);
    this.#length = given.size;
  }

  /** Undefined if the options bias no token. Throws ERR_INVALID_ARGUMENT. */
  static create(options: SamplingOptions, vocabSize: number): LogitBiases | undefined {
    const { logitBias, frequencyPenalty = 0, presencePenalty = 0 } = options;
    checkPenalty('frequencyPenalty', frequencyPenalty);
    checkPenalty('presencePenalty', presencePenalty);
    const given = logitBias === undefined ? new Map() : checkLogitBias(logitBias, vocabSize);
    if (given.size === 0 && frequencyPenalty === 0 && presencePenalty === 0) return undefined;
    return new LogitBiases(given, frequencyPenalty, presencePenalty);
  }

  /** Valid until the next call of `accept`. */
  get current(): NativeBiases {
    return {
      tokens: this.#tokens.subarray(0, this.#length),
      values: this.#values.subarray(0, this.#length),
    };
  }

  /** Says that `token` was drawn. */
  accept(token: number): void {
    if (this.#hasPenalty) this.#setCount(token, (this.#counts.get(token) ?? 0) + 1);
  }

  /**
   * Those of the next draw, and of the draw after each of `tokens` if they are accepted. They are
   * not. Valid until the next call of `accept`.
   */
  after(tokens: readonly number[]): NativeBiases[] {
    if (!this.#hasPenalty) return [...tokens, 0].map(() => this.current);
    const copy = () => ({
      tokens: this.current.tokens.slice(),
      values: this.current.values.slice(),
    });
    const all = [copy()];
    for (const token of tokens) {
      this.accept(token);
      all.push(copy());
    }
    for (const token of tokens) this.#setCount(token, (this.#counts.get(token) as number) - 1);
    return all;
  }

  get #hasPenalty(): boolean {
    return this.#frequencyPenalty !== 0 || this.#presencePenalty !== 0;
  }

  /** A token with the count 0 may keep its place. */
  #setCount(token: number, count: number): void {
    this.#counts.set(token, count);
    const given = this.#given.get(token) ?? 0;
    const index = this.#indexOf(token); // may replace #values
    const penalized = given - this.#frequencyPenalty * count - this.#presencePenalty;
    this.#values[index] = count === 0 ? given : penalized;
  }

  /** The index of a token, which is inserted if it is absent. */
  #indexOf(token: number): number {
    let low = 0;
    let high = this.#length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#tokens[middle] as number) < token) low = middle + 1;
      else high = middle;
    }
    if (low < this.#length && this.#tokens[low] === token) return low;
    if (this.#length === this.#tokens.length) this.#grow();
    this.#tokens.copyWithin(low + 1, low, this.#length);
    this.#values.copyWithin(low + 1, low, this.#length);
    this.#tokens[low] = token;
    this.#length++;
    return low;
  }

  #grow(): void {
    const capacity = Math.max(64, 2 * this.#length);
    const tokens = new Int32Array(capacity);
    const values = new Float32Array(capacity);
    tokens.set(this.#tokens);
    values.set(this.#values);
    this.#tokens = tokens;
    this.#values = values;
  }
}

function checkPenalty(name: string, value: unknown): void {
  checkNumber(name, value, -MAX_PENALTY, MAX_PENALTY, '(0: off)');
}

function checkLogitBias(logitBias: unknown, vocabSize: number): Map<number, number> {
  if (typeof logitBias !== 'object' || logitBias === null || Array.isArray(logitBias)) {
    throw invalid('logitBias', 'an object or a Map from tokens to numbers', logitBias);
  }
  const entries: Iterable<[unknown, unknown]> = types.isMap(logitBias)
    ? logitBias
    : Object.entries(logitBias).map(([key, bias]) => [tokenOfKey(key), bias]);
  const biases = new Map<number, number>();
  for (const [token, bias] of entries) {
    if (!Number.isSafeInteger(token) || (token as number) < 0 || (token as number) >= vocabSize) {
      const expected = `a token, an integer from 0 to ${vocabSize - 1} (vocabSize - 1)`;
      throw invalid('a key of logitBias', expected, token);
    }
    const isBias = typeof bias === 'number' && bias <= MAX_BIAS && bias >= -MAX_BIAS;
    if (!isBias && bias !== Number.NEGATIVE_INFINITY) {
      const expected = `a number from ${-MAX_BIAS} to ${MAX_BIAS}, or -Infinity (never draw it)`;
      throw invalid(`logitBias[${token}]`, expected, bias);
    }
    biases.set(token as number, bias as number);
  }
  if (
    biases.size === vocabSize &&
    [...biases.values()].every((b) => b === Number.NEGATIVE_INFINITY)
  ) {
    throw invalidArgument('logitBias forbids all tokens: allow at least one');
  }
  return biases;
}

/** The token of a property's name, or the name if it is none. */
function tokenOfKey(key: string): number | string {
  return String(Number(key)) === key ? Number(key) : key;
}
