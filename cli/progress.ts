import type { LoadOptions } from '../lib/index';

const WIDTH = 30;
const REDRAW_MS = 50;

/** A progress bar on stderr. Writes nothing if stderr is not a terminal. */
export class ProgressBar {
  readonly #label: string;
  readonly #unit: (done: number, total: number) => string;
  readonly #shown = process.stderr.isTTY === true;
  #drawnAt = 0;
  #drawn = false;

  /** `unit` formats the progress, for example '3.1/14.9 MB'. */
  constructor(label: string, unit: (done: number, total: number) => string) {
    this.#label = label;
    this.#unit = unit;
  }

  update(done: number, total: number): void {
    const now = performance.now();
    if (!this.#shown || total <= 0 || (now - this.#drawnAt < REDRAW_MS && done < total)) return;
    this.#drawnAt = now;
    this.#drawn = true;
    const filled = Math.round((WIDTH * Math.min(done, total)) / total);
    const bar = '#'.repeat(filled).padEnd(WIDTH, '.');
    process.stderr.write(`\r\x1b[K${this.#label} [${bar}] ${this.#unit(done, total)}`);
  }

  /** Removes the bar and leaves the cursor on an empty line. */
  clear(): void {
    if (this.#drawn) process.stderr.write('\r\x1b[K');
    this.#drawn = false;
  }
}

export const megabytes = (done: number, total: number) =>
  `${(done / 1e6).toFixed(1)}/${(total / 1e6).toFixed(1)} MB`;
export const tokens = (done: number, total: number) => `${done}/${total} tokens`;

/** Calls `load` with the callbacks of two bars, for the download and for the loading of a model. */
export async function withLoadingBars<T>(
  load: (bars: Pick<LoadOptions, 'onDownload' | 'onProgress'>) => Promise<T>,
): Promise<T> {
  const downloading = new ProgressBar('downloading', megabytes);
  const loading = new ProgressBar('loading', megabytes);
  try {
    return await load({
      onDownload: ({ downloadedBytes, totalBytes }) =>
        downloading.update(downloadedBytes, totalBytes),
      onProgress: ({ loadedBytes, totalBytes }) => {
        downloading.clear();
        loading.update(loadedBytes, totalBytes);
      },
    });
  } finally {
    downloading.clear();
    loading.clear();
  }
}
