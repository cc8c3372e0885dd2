import { setImmediate as nextTurn } from 'node:timers/promises';
import { invalid, invalidArgument } from './errors';
import type { Tokenizer } from './tokenizer';

/** Limit of the UTF-16 units of all stop strings together. */
const MAX_STOP_UNITS = 65_536;

// The table of stop strings is built on the event loop, so many units in one turn would hold it.
const UNITS_PER_TURN = 4096;

/**
 * Checks the `stop` option and copies it to an array. Throws ERR_INVALID_ARGUMENT unless it is a
 * non-empty string or an array of them, of at most 65,536 UTF-16 units together.
 */
export function resolveStop(stop: string | readonly string[] | undefined): string[] {
  if (stop === undefined) return [];
  const given: readonly unknown[] = Array.isArray(stop) ? stop : [stop];
  const stops: string[] = [];
  let units = 0;
  for (let i = 0; i < given.length; i++) {
    const text = given[i];
    if (typeof text !== 'string' || text === '') {
      throw invalid('stop', 'a non-empty string or an array of them', text);
    }
    units += text.length;
    if (units > MAX_STOP_UNITS) {
      throw invalidArgument(
        `the stop strings have more than ${MAX_STOP_UNITS} characters (UTF-16 units) together, ` +
          'the limit: use fewer or shorter ones',
      );
    }
    stops.push(text);
  }
  return stops;
}

/**
 * Finds stop strings in streamed text, and withholds text that may be the start of one. The time
 * that a text takes is linear in its length, whatever the stop strings are (Aho and Corasick, 1975).
 */
export class StopFilter {
  readonly #trie: Trie;
  #node = 0; // the longest node that the text ends with
  #withheld = '';
  #matched: string | null = null;

  private constructor(trie: Trie) {
    this.#trie = trie;
  }

  static async create(stops: readonly string[]): Promise<StopFilter> {
    return new StopFilter(await Trie.create(stops));
  }

  /** The stop string that was found, if any. After that, `push` and `flush` return ''. */
  get matched(): string | null {
    return this.#matched;
  }

  /** Returns the text before a stop string, or before text that may become one. */
  push(text: string): string {
    if (this.#matched !== null || text === '') return '';
    const { lengths, matches } = this.#trie;
    const all = this.#withheld + text;
    // If the text completes several stop strings, the one that begins first counts.
    let begin = all.length;
    for (let i = this.#withheld.length; i < all.length; i++) {
      this.#node = this.#trie.step(this.#node, all.charCodeAt(i));
      const match = matches[this.#node] as number;
      if (match === 0 || i + 1 - match >= begin) continue;
      begin = i + 1 - match;
      this.#matched = all.slice(begin, i + 1);
    }
    if (this.#matched === null) begin = all.length - (lengths[this.#node] as number);
    this.#withheld = this.#matched === null ? all.slice(begin) : '';
    return all.slice(0, begin);
  }

  /** Returns the withheld text, which became no stop string. */
  flush(): string {
    const rest = this.#withheld;
    this.#withheld = '';
    this.#node = 0;
    return rest;
  }
}

/** The starts of the stop strings. Each is a node; node 0 is the empty one. */
class Trie {
  readonly lengths: Int32Array;
  /** Length of the longest stop string that a node ends with; 0 if there is none. */
  readonly matches: Int32Array;
  /** The node of the longest proper suffix of a node that is a node too. */
  readonly #suffixes: Int32Array;
  /** The nodes without their last unit, and the last unit. */
  readonly #parents: Int32Array;
  readonly #units: Uint16Array;
  /** The nodes by a hash of parent and unit. A Map takes several times as long. */
  readonly #table: Int32Array;
  #numNodes = 1;

  private constructor(maxNodes: number) {
    this.lengths = new Int32Array(maxNodes);
    this.matches = new Int32Array(maxNodes);
    this.#suffixes = new Int32Array(maxNodes);
    this.#parents = new Int32Array(maxNodes);
    this.#units = new Uint16Array(maxNodes);
    this.#table = new Int32Array(2 ** Math.ceil(Math.log2(2 * maxNodes)));
  }

  static async create(stops: readonly string[]): Promise<Trie> {
    const trie = new Trie(stops.reduce((sum, { length }) => sum + length, 1));
    let units = 0;
    // Shorter nodes first, because the suffixes of a node are shorter.
    const rest = stops.map((stop) => ({ stop, node: 0 }));
    rest.sort((a, b) => b.stop.length - a.stop.length);
    for (let length = 1; rest.length > 0; length++) {
      for (const entry of rest) {
        entry.node = trie.#grow(entry.node, entry.stop.charCodeAt(length - 1), length);
        if (++units % UNITS_PER_TURN === 0) await nextTurn();
      }
      for (let last = rest.at(-1); last?.stop.length === length; last = rest.at(-1)) {
        trie.matches[last.node] = length;
        rest.pop();
      }
    }
    return trie;
  }

  /** The longest node that the text of `node` ends with after one more unit. */
  step(node: number, unit: number): number {
    for (let from = node; ; from = this.#suffixes[from] as number) {
      const child = this.#table[this.#slot(from, unit)] as number;
      if (child !== 0 || from === 0) return child;
    }
  }

  /** The child of a node for the next unit, created if it does not exist. */
  #grow(parent: number, unit: number, length: number): number {
    const slot = this.#slot(parent, unit);
    const existing = this.#table[slot] as number;
    if (existing !== 0) return existing;
    const node = this.#numNodes++;
    const suffix = parent === 0 ? 0 : this.step(this.#suffixes[parent] as number, unit);
    this.#table[slot] = node;
    this.#parents[node] = parent;
    this.#units[node] = unit;
    this.#suffixes[node] = suffix;
    this.lengths[node] = length;
    this.matches[node] = this.matches[suffix] as number;
    return node;
  }

  /** Where the child of a node is in the table, or an empty place for it. */
  #slot(parent: number, unit: number): number {
    const mask = this.#table.length - 1;
    const hash = Math.imul(parent + 1, 0x9e3779b1) ^ Math.imul(unit + 1, 0x85ebca6b);
    for (let slot = (hash ^ (hash >>> 15)) & mask; ; slot = (slot + 1) & mask) {
      const node = this.#table[slot] as number;
      if (node === 0 || (this.#parents[node] === parent && this.#units[node] === unit)) return slot;
    }
  }
}

/** Finds tokens that a stop string names: special tokens, which decoded text omits. */
export class StopTokens {
  readonly #tokenizer: Tokenizer | null;
  readonly #stops: ReadonlySet<string>;

  constructor(tokenizer: Tokenizer | null, stops: readonly string[]) {
    this.#tokenizer = tokenizer;
    this.#stops = new Set(stops);
  }

  /** The stop string that is the text of `token`, if `token` is special; else null. */
  match(token: number): string | null {
    if (this.#stops.size === 0 || this.#tokenizer === null) return null;
    if (this.#tokenizer.decode([token]) !== '') return null; // part of a character
    const text = this.#tokenizer.decode([token], { skipSpecialTokens: false });
    return this.#stops.has(text) ? text : null;
  }
}
