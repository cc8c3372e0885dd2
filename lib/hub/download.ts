import { createHash } from 'node:crypto';
import { constants } from 'node:fs';
import { type FileHandle, open, rename, unlink } from 'node:fs/promises';
import { DiffqkvError } from '../errors';
import { cacheError } from './cache';
import { type Answer, type HubClient, type HubFile, MAX_ATTEMPTS, TransientError } from './client';

const READ_BYTES = 2 ** 20;

export interface BlobDownload {
  client: HubClient;
  commit: string;
  file: HubFile;
  /** Path of the blob. It appears only when it is whole and its hash is right. */
  blob: string;
  /** Whether this process may still write. */
  mayWrite: () => Promise<boolean>;
  /** Called with the number of bytes that are there: those kept from an earlier call, then more. */
  onBytes: (bytes: number) => void;
}

/**
 * Downloads a file to `blob`. The bytes that arrive are kept in a file beside it, so that a later
 * call, after an error, an abort or the end of the process, requests only the rest.
 */
export async function downloadBlob(download: BlobDownload): Promise<void> {
  const { blob, file } = download;
  const partial = `${blob}.diffqkv.incomplete`;
  try {
    // A link that somebody has put there could lead to any file.
    const flags = constants.O_RDWR | constants.O_CREAT | (constants.O_NOFOLLOW ?? 0);
    const handle = await open(partial, flags);
    try {
      await new PartialFile(download, handle).complete();
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(partial, blob);
  } catch (error) {
    const isWrong = error instanceof DiffqkvError && error.code === 'ERR_INVALID_DOWNLOAD';
    if (isWrong) await unlink(partial).catch(() => {});
    throw cacheError(`${file.path} (${partial})`, error);
  }
}

class PartialFile {
  readonly #download: BlobDownload;
  readonly #handle: FileHandle;
  #hash = createHash('sha256');
  #length = 0;

  constructor(download: BlobDownload, handle: FileHandle) {
    this.#download = download;
    this.#handle = handle;
  }

  /** Requests bytes until the file is whole. Rejects if its hash is wrong. */
  async complete(): Promise<void> {
    const kept = await this.#readKept();
    await this.#requestRest();
    const { path, algorithm, hash } = this.#download.file;
    let digest = this.#hash.digest('hex');
    if (digest !== hash && kept > 0) {
      // The kept part may be damaged.
      await this.#restart();
      await this.#requestRest();
      digest = this.#hash.digest('hex');
    }
    if (digest === hash) return;
    throw this.#wrong(`the ${algorithm} of ${path} is ${digest}, and the hub lists ${hash}`);
  }

  async #readKept(): Promise<number> {
    this.#begin();
    const { size } = this.#download.file;
    const kept = (await this.#handle.stat()).size;
    if (kept > size) await this.#handle.truncate(0);
    const buffer = Buffer.alloc(READ_BYTES);
    while (kept <= size && this.#length < kept) {
      const { bytesRead } = await this.#handle.read(buffer, 0, buffer.length, this.#length);
      if (bytesRead === 0) break;
      this.#add(buffer.subarray(0, bytesRead));
      this.#download.client.checkAborted();
    }
    return this.#length;
  }

  async #requestRest(): Promise<void> {
    const { client, commit, file } = this.#download;
    let attempt = 1;
    while (this.#length < file.size) {
      const before = this.#length;
      try {
        const answer = await client.openFile(commit, file.path, this.#length);
        try {
          await this.#receive(answer);
        } finally {
          answer.close();
        }
      } catch (error) {
        // A connection that has brought something counts as new.
        attempt = this.#length > before ? 2 : attempt + 1;
        await client.waitToRetry(error, attempt, MAX_ATTEMPTS);
      }
    }
  }

  async #receive({ status, headers, body }: Answer): Promise<void> {
    const { file, mayWrite } = this.#download;
    const range = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(headers.get('content-range') ?? '');
    const announced = status === 206 ? range?.[2] : headers.get('content-length');
    if (/^\d+$/.test(announced ?? '') && Number(announced) !== file.size) {
      throw this.#wrong(`${file.path} has ${announced} bytes, and the hub lists ${file.size}`);
    }
    // A server may ignore the range and send the whole file.
    if (status !== 206) await this.#restart();
    else if (Number(range?.[1]) !== this.#length) {
      throw this.#wrong(`the answer for ${file.path} has another range than the request`);
    }
    for await (const chunk of body) {
      if (this.#length + chunk.length > file.size) {
        throw this.#wrong(`${file.path} has more than the ${file.size} bytes that the hub lists`);
      }
      if (!(await mayWrite())) {
        throw new DiffqkvError(
          'ERR_CACHE',
          `${file.path}: another process has taken over this download, because this process was ` +
            'stopped for long: try again',
        );
      }
      let written = 0;
      while (written < chunk.length) {
        const { bytesWritten } = await this.#handle.write(
          chunk,
          written,
          chunk.length - written,
          this.#length + written,
        );
        written += bytesWritten;
      }
      this.#add(chunk);
    }
    if (this.#length < file.size) {
      throw new TransientError(
        `${file.path}: the connection ended after ${this.#length} of ${file.size} bytes`,
      );
    }
  }

  #add(chunk: Uint8Array): void {
    this.#hash.update(chunk);
    this.#length += chunk.length;
    this.#download.onBytes(this.#length);
  }

  /** Removes what is there. */
  async #restart(): Promise<void> {
    await this.#handle.truncate(0);
    this.#begin();
  }

  #begin(): void {
    const { algorithm, size } = this.#download.file;
    this.#length = 0;
    this.#hash = createHash(algorithm === 'sha256' ? 'sha256' : 'sha1');
    if (algorithm === 'git-sha1') this.#hash.update(`blob ${size}\0`);
  }

  #wrong(problem: string): DiffqkvError {
    return this.#download.client.invalidAnswer(`${problem}. Nothing of it is kept; try again`);
  }
}
