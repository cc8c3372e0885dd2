import { mkdir, readFile, stat, statfs } from 'node:fs/promises';
import { join } from 'node:path';
import { onAbort, throwIfAborted } from '../abort';
import { checkCallback, DiffqkvError } from '../errors';
import { CachedModel, cacheError, hasFiles } from './cache';
import { checkConfig, configNames } from './check_config';
import { HubClient, type HubFile, type ModelInfo } from './client';
import { downloadBlob } from './download';
import { idText, type ModelId } from './id';
import { type Selection, selectFiles, shardNames } from './select';
import { hubSettings } from './settings';

/** How many bytes of a download are there, of how many. */
export interface DownloadProgress {
  downloadedBytes: number;
  totalBytes: number;
}

export interface DownloadOptions {
  /** Called as files are downloaded. If it throws, the download rejects with that error. */
  onDownload?: (progress: DownloadProgress) => void;
  signal?: AbortSignal;
}

const CONCURRENT_FILES = 4;

/**
 * Resolves to the directory of a model in the cache, after it has downloaded what is missing. With
 * HF_HUB_OFFLINE, and if the hub cannot be reached, it is the revision that the cache has.
 */
export async function downloadModel(id: ModelId, options: DownloadOptions = {}): Promise<string> {
  const { signal, onDownload } = options;
  checkCallback('onDownload', onDownload);
  throwIfAborted(signal);
  const settings = await hubSettings();
  const cached = new CachedModel(settings.cache, id.name);
  const complete = await cached.completeSnapshot(id);
  if (settings.offline) {
    if (complete !== null) return complete;
    throw new DiffqkvError(
      'ERR_MODEL_NOT_FOUND',
      `${idText(id)}: no such directory, and no complete download in ${settings.cache}. ` +
        'HF_HUB_OFFLINE is set: unset it to download the model',
    );
  }
  const controller = new AbortController();
  const stopListening = onAbort(signal, () => controller.abort());
  try {
    const client = new HubClient(settings, id, controller.signal);
    let info: ModelInfo;
    try {
      info = await client.modelInfo(complete === null ? undefined : 1);
    } catch (error) {
      const { code, message } = error as DiffqkvError;
      if (code !== 'ERR_NETWORK') throw error;
      if (complete === null) {
        throw new DiffqkvError(code, `${message}. It is neither a directory nor downloaded`);
      }
      process.emitWarning(`${message}. Using the downloaded copy ${complete}`);
      return complete;
    }
    return await new Download(id, cached, client, info, controller, onDownload).run();
  } finally {
    stopListening();
  }
}

class Download {
  readonly #id: ModelId;
  readonly #cached: CachedModel;
  readonly #client: HubClient;
  readonly #info: ModelInfo;
  readonly #controller: AbortController;
  readonly #onDownload: DownloadOptions['onDownload'];
  readonly #directory: string;
  #progress = { downloadedBytes: 0, totalBytes: 0 };
  #reported = -1;

  constructor(
    id: ModelId,
    cached: CachedModel,
    client: HubClient,
    info: ModelInfo,
    controller: AbortController,
    onDownload: DownloadOptions['onDownload'],
  ) {
    this.#id = id;
    this.#cached = cached;
    this.#client = client;
    this.#info = info;
    this.#controller = controller;
    this.#onDownload = onDownload;
    this.#directory = cached.snapshot(info.commit);
  }

  async run(): Promise<string> {
    const { commit, files } = this.#info;
    const { revision } = this.#id;
    const selection = await selectFiles(idText(this.#id), files);
    if (await this.#isThere(selection)) {
      await this.#cached.writeRef(revision, commit).catch(() => {}); // the cache may be read-only
      return this.#directory;
    }
    const listed = await this.#client.listFiles(commit);
    try {
      await mkdir(this.#cached.blob(''), { recursive: true });
      const lock = await this.#cached.lock(this.#controller.signal);
      try {
        await this.#download(selection, listed, () => lock.isHeld());
        await this.#cached.writeRef(revision, commit);
      } finally {
        await lock.release();
      }
    } catch (error) {
      if ((error as { code?: string }).code === 'ABORT_ERR') this.#client.checkAborted();
      throw cacheError(this.#directory, error);
    }
    return this.#directory;
  }

  async #isThere({ small, weights }: Selection): Promise<boolean> {
    if (!(await hasFiles(this.#directory, [...small, weights.first]))) return false;
    return !weights.isIndex || hasFiles(this.#directory, await this.#shards(weights.first));
  }

  async #shards(index: string): Promise<string[]> {
    const shards = shardNames(await readFile(join(this.#directory, index)));
    if (typeof shards === 'string') throw this.#client.invalidAnswer(`${index}: ${shards}`);
    return shards;
  }

  async #download(
    { small, weights }: Selection,
    listed: Map<string, HubFile>,
    mayWrite: () => Promise<boolean>,
  ): Promise<void> {
    const find = (path: string) => {
      const file = listed.get(path);
      if (file === undefined) throw this.#client.invalidAnswer(`${path} is not in the listing`);
      return file;
    };
    const first = [...small, ...(weights.isIndex ? [weights.first] : [])].map(find);
    for (const file of first) this.#client.checkSmall(file);
    // A config that the loader rejects is found before gigabytes are downloaded.
    const configs = first.filter(({ path }) => configNames.includes(path));
    await this.#fetchAll(configs, mayWrite);
    const contents = new Map<string, Uint8Array>();
    for (const { path } of configs) {
      contents.set(path, await readFile(join(this.#directory, path)));
    }
    if (contents.has('config.json')) checkConfig(contents, idText(this.#id));
    await this.#fetchAll(first, mayWrite);
    const names = weights.isIndex ? await this.#shards(weights.first) : [weights.first];
    const large = names.map(find);
    this.#progress = {
      downloadedBytes: first.reduce((sum, { size }) => sum + size, 0),
      totalBytes: [...first, ...large].reduce((sum, { size }) => sum + size, 0),
    };
    await this.#fetchAll(large, mayWrite);
  }

  /** Downloads the files that the snapshot lacks. The first error ends all. */
  async #fetchAll(files: HubFile[], mayWrite: () => Promise<boolean>): Promise<void> {
    // Files with the same contents have one blob.
    const missing = new Map<string, HubFile[]>();
    for (const file of files) {
      if (await hasFiles(this.#directory, [file.path])) this.#progress.downloadedBytes += file.size;
      else missing.set(file.hash, [...(missing.get(file.hash) ?? []), file]);
    }
    const queue = [...missing.values()];
    await this.#checkSpace(queue.map(([file]) => file as HubFile));
    let failure: { error: unknown } | undefined;
    const work = async () => {
      for (let same = queue.shift(); same !== undefined && !failure; same = queue.shift()) {
        try {
          for (const file of same) await this.#fetch(file, mayWrite);
        } catch (error) {
          failure ??= { error };
          this.#controller.abort(); // the other files
        }
      }
    };
    await Promise.all(Array.from({ length: CONCURRENT_FILES }, work));
    if (failure) throw failure.error;
  }

  async #fetch(file: HubFile, mayWrite: () => Promise<boolean>): Promise<void> {
    const client = this.#client;
    const { commit } = this.#info;
    const blob = this.#cached.blob(file.hash);
    let counted = 0;
    const onBytes = (bytes: number) => {
      this.#progress.downloadedBytes += bytes - counted;
      counted = bytes;
      this.#report();
    };
    const status = await stat(blob).catch(() => null);
    if (status?.size === file.size) onBytes(file.size);
    else await downloadBlob({ client, commit, file, blob, mayWrite, onBytes });
    await this.#cached.linkBlob(commit, file.path, file.hash);
  }

  #report(): void {
    const { downloadedBytes, totalBytes } = this.#progress;
    if (totalBytes === 0) return; // the first files are small, and the total is not known yet
    const step = Math.max(2 ** 20, totalBytes / 200);
    const isLast = downloadedBytes === totalBytes;
    if (!isLast && Math.abs(downloadedBytes - this.#reported) < step) return;
    this.#reported = downloadedBytes;
    this.#onDownload?.({ downloadedBytes, totalBytes });
  }

  async #checkSpace(missing: HubFile[]): Promise<void> {
    let needed = 0;
    for (const { hash, size } of missing) {
      const partial = await stat(`${this.#cached.blob(hash)}.diffqkv.incomplete`).catch(() => null);
      needed += size - (partial?.size ?? 0);
    }
    const folder = this.#cached.blob('');
    const { bavail, bsize, blocks } = await statfs(folder);
    const free = bavail * bsize;
    if (blocks === 0 || needed <= free) return; // some file systems do not know their size
    throw new DiffqkvError(
      'ERR_CACHE',
      `${idText(this.#id)}: the download needs ${needed} more bytes, and ${folder} has ${free} ` +
        'bytes free: free space, or set HF_HUB_CACHE to a directory on another disk',
    );
  }
}
