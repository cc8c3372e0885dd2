import { invalid } from './errors';

/** Checks the `stop` option. Throws ERR_INVALID_ARGUMENT. */
export function resolveStop(stop: string | readonly string[] | undefined): string[] {
  if (stop === undefined) return [];
  const stops: unknown[] = Array.isArray(stop) ? stop : [stop];
  for (const text of stops) {
    if (typeof text !== 'string' || text === '')
      throw invalid('stop', 'a non-empty string, or an array of such', text);
  }
  return stops as string[];
}

/** Looks for stop strings in text that comes in pieces, and withholds what may be the beginning of one. */
export class StopFilter {
  readonly #stops: string[];
  #withheld = '';
  /** A stop string has been found: nothing comes out any more. */
  stopped = false;

  constructor(stops: string[]) {
    this.#stops = stops;
  }

  /** The text that can be given out now: what stands before a stop string, or before what may become one. */
  push(text: string): string {
    if (this.stopped) return '';
    const all = this.#withheld + text;
    let end = Number.POSITIVE_INFINITY; // of several stop strings, the one that begins first counts
    for (const stop of this.#stops) {
      const at = all.indexOf(stop);
      if (at >= 0) end = Math.min(end, at);
    }
    if (end <= all.length) {
      this.stopped = true;
      this.#withheld = '';
      return all.slice(0, end);
    }
    const length = Math.max(0, ...this.#stops.map((stop) => overlap(all, stop)));
    this.#withheld = all.slice(all.length - length);
    return all.slice(0, all.length - length);
  }

  /** What was withheld, where no stop string came of it. */
  flush(): string {
    const rest = this.#withheld;
    this.#withheld = '';
    return rest;
  }
}

/** The length of the longest end of `text` that `stop` begins with, `stop` itself excluded. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
