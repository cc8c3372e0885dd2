import { invalid } from './errors';

/** Checks the `stop` option and converts it to an array. Throws ERR_INVALID_ARGUMENT. */
export function resolveStop(stop: string | readonly string[] | undefined): string[] {
  if (stop === undefined) return [];
  const stops: unknown[] = Array.isArray(stop) ? stop : [stop];
  for (const text of stops) {
    if (typeof text !== 'string' || text === '') {
      throw invalid('stop', 'a non-empty string or an array of them', text);
    }
  }
  return stops as string[];
}

/** Finds stop strings in streamed text, and withholds text that may be the start of one. */
export class StopFilter {
  readonly #stops: string[];
  #withheld = '';
  /** A stop string was found: `push` and `flush` return '' from now on. */
  stopped = false;

  constructor(stops: string[]) {
    this.#stops = stops;
  }

  /** Returns the text before a stop string, or before text that may become one. */
  push(text: string): string {
    if (this.stopped) return '';
    const all = this.#withheld + text;
    // The stop string that begins first counts.
    const found = this.#stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.stopped = true;
      this.#withheld = '';
      return all.slice(0, Math.min(...found));
    }
    const length = Math.max(0, ...this.#stops.map((stop) => overlap(all, stop)));
    this.#withheld = all.slice(all.length - length);
    return all.slice(0, all.length - length);
  }

  /** Returns the withheld text, which became no stop string. */
  flush(): string {
    const rest = this.#withheld;
    this.#withheld = '';
    return rest;
  }
}

/** Length of the longest suffix of `text` that is a proper prefix of `stop`. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
