import { setTimeout as delay } from 'node:timers/promises';
import { aborted, DiffqkvError } from '../errors';
import { idText, type ModelId } from './id';
import type { HubSettings } from './settings';

/** A file of a model on the hub. */
export interface HubFile {
  path: string;
  size: number;
  /** What the hub says that the contents hash to. Names the blob in the cache. */
  hash: string;
  /** sha256 for files in LFS. Other files have the id of their git object. */
  algorithm: 'sha256' | 'git-sha1';
}

/** A model at a commit. */
export interface ModelInfo {
  commit: string;
  /** Paths of its files. */
  files: string[];
  /** Number of parameters in its safetensors files, if the hub has counted them. */
  numParameters: number | undefined;
}

/** The answer of a server to a GET request, after redirects. */
export interface Answer {
  status: number;
  headers: Headers;
  /** Ends with an error if the connection breaks or nothing arrives for too long. */
  body: AsyncIterable<Uint8Array>;
  /** Closes the connection. Needed only if the body is not read. */
  close(): void;
}

/** ERR_NETWORK of a kind that may be gone at the next attempt. */
export class TransientError extends DiffqkvError {
  /** What the server asked for with Retry-After. */
  readonly waitMs: number | undefined;

  constructor(message: string, waitMs?: number) {
    super('ERR_NETWORK', message);
    this.waitMs = waitMs;
  }
}

export const MAX_ATTEMPTS = 5;
const FIRST_WAIT_MS = 500;
const MAX_WAIT_MS = 60_000;
const MAX_REDIRECTS = 10;
const MAX_JSON_BYTES = 16 * 2 ** 20;
const MAX_PAGES = 100;
// The largest tokenizer.json that is accepted has 64 MiB. An index is smaller.
const MAX_SMALL_BYTES = 64 * 2 ** 20;

/** Requests to a hub about one model. */
export class HubClient {
  readonly #settings: HubSettings;
  readonly #id: ModelId;
  readonly #signal: AbortSignal;

  constructor(settings: HubSettings, id: ModelId, signal: AbortSignal) {
    this.#settings = settings;
    this.#id = id;
    this.#signal = signal;
  }

  /** Resolves the revision, with one request if nothing fails. */
  async modelInfo(maxAttempts = MAX_ATTEMPTS): Promise<ModelInfo> {
    const { modelInfo } = await import('@huggingface/hub');
    const { name, revision } = this.#id;
    const info = await this.#api(maxAttempts, (options) =>
      modelInfo({
        ...options,
        name,
        revision,
        additionalFields: ['sha', 'filePaths', 'safetensors'],
      }),
    );
    const { sha, filePaths, safetensors } = info;
    if (!isHex(sha, 40) || !filePaths.every((path) => typeof path === 'string')) {
      throw this.invalidAnswer('the description of the model lacks its commit or its files');
    }
    const total: unknown = safetensors?.total;
    const numParameters = Number.isSafeInteger(total) ? (total as number) : undefined;
    return { commit: sha, files: filePaths, numParameters };
  }

  /** Lists the files at the root of the model. */
  async listFiles(commit: string): Promise<Map<string, HubFile>> {
    const { listFiles } = await import('@huggingface/hub');
    const files = new Map<string, HubFile>();
    await this.#api(MAX_ATTEMPTS, async (options) => {
      const entries = listFiles({ ...options, repo: this.#id.name, revision: commit });
      for await (const { type, path, size, oid, lfs } of entries) {
        if (type !== 'file') continue;
        const hash = lfs?.oid ?? oid;
        const algorithm = lfs === undefined ? 'git-sha1' : 'sha256';
        if (
          typeof path !== 'string' ||
          !Number.isSafeInteger(size) ||
          size < 0 ||
          !isHex(hash, lfs === undefined ? 40 : 64)
        ) {
          throw this.invalidAnswer(`the entry of ${String(path)} lacks a size or a hash`);
        }
        files.set(path, { path, size, hash, algorithm });
      }
    });
    return files;
  }

  /** Requests the contents of a file from byte `start` on, once. */
  openFile(commit: string, path: string, start: number): Promise<Answer> {
    const { endpoint } = this.#settings;
    const url = `${endpoint}/${this.#id.name}/resolve/${commit}/${encodeURIComponent(path)}`;
    const headers: Record<string, string> = { 'accept-encoding': 'identity' };
    if (start > 0) headers.range = `bytes=${start}-`;
    return this.#get(url, headers);
  }

  /** Throws if a file that is read whole is too large. */
  checkSmall({ path, size }: HubFile): void {
    if (size <= MAX_SMALL_BYTES) return;
    throw this.invalidAnswer(`${path} has ${size} bytes, and the limit is ${MAX_SMALL_BYTES}`);
  }

  /** Reads a small file into memory. Its hash is not checked. */
  async readFile(commit: string, file: HubFile): Promise<Buffer> {
    this.checkSmall(file);
    return this.#read(() => this.openFile(commit, file.path, 0), file.size, MAX_ATTEMPTS);
  }

  /** Waits before attempt `attempt` (2, 3, ...) after `error`, or throws what cannot be retried. */
  async waitToRetry(error: unknown, attempt: number, maxAttempts: number): Promise<void> {
    if (!(error instanceof TransientError) || attempt > maxAttempts) throw error;
    const waitMs = error.waitMs ?? FIRST_WAIT_MS * 2 ** (attempt - 2);
    if (waitMs > MAX_WAIT_MS) throw error;
    await delay(waitMs, undefined, { signal: this.#signal }).catch(() => this.checkAborted());
  }

  checkAborted(): void {
    if (this.#signal.aborted) throw aborted('while the model was downloaded');
  }

  invalidAnswer(problem: string): DiffqkvError {
    const host = new URL(this.#settings.endpoint).host;
    return new DiffqkvError(
      'ERR_INVALID_DOWNLOAD',
      `${idText(this.#id)}: the answer of ${host} is invalid: ${problem}`,
    );
  }

  /** Calls the library with a `fetch` that has the rules of this class. */
  async #api<T>(
    maxAttempts: number,
    call: (options: { hubUrl: string; fetch: typeof fetch }) => Promise<T>,
  ): Promise<T> {
    let pages = 0;
    const get = async (input: unknown) => {
      const url = String(input);
      // A listing has the URL of its next page.
      if (!this.#isEndpoint(new URL(url))) throw this.invalidAnswer('a page is on another host');
      if (++pages > MAX_PAGES) throw this.invalidAnswer(`it has more than ${MAX_PAGES} pages`);
      let link = '';
      const open = async () => {
        const answer = await this.#get(url, { accept: 'application/json' });
        link = answer.headers.get('link') ?? '';
        return answer;
      };
      const text = await this.#read(open, MAX_JSON_BYTES, maxAttempts);
      return new Response(text, { headers: { link } });
    };
    try {
      return await call({ hubUrl: this.#settings.endpoint, fetch: get as typeof fetch });
    } catch (error) {
      if (error instanceof DiffqkvError) throw error;
      // The library assumes that the JSON has the right form.
      throw this.invalidAnswer((error as Error).message);
    }
  }

  /** Reads the body of an answer of at most `maxBytes`. */
  async #read(open: () => Promise<Answer>, maxBytes: number, maxAttempts: number): Promise<Buffer> {
    for (let attempt = 2; ; attempt++) {
      try {
        const chunks: Uint8Array[] = [];
        let bytes = 0;
        for await (const chunk of (await open()).body) {
          chunks.push(chunk);
          bytes += chunk.length;
          if (bytes > maxBytes) throw this.invalidAnswer(`it has more than ${maxBytes} bytes`);
        }
        return Buffer.concat(chunks);
      } catch (error) {
        await this.waitToRetry(error, attempt, maxAttempts);
      }
    }
  }

  /** The token is sent to the endpoint only, not to where it redirects. */
  #isEndpoint(url: URL): boolean {
    return url.origin === new URL(this.#settings.endpoint).origin;
  }

  async #get(address: string, headers: Record<string, string>): Promise<Answer> {
    const { token } = this.#settings;
    let url = new URL(address);
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
      const sent: Record<string, string> = { 'user-agent': 'diffqkv', ...headers };
      if (token !== undefined && this.#isEndpoint(url)) sent.authorization = `Bearer ${token}`;
      const answer = await this.#request(url, sent);
      const { status } = answer;
      const location = answer.headers.get('location');
      if (status === 200 || status === 206) return answer;
      answer.close();
      if (![301, 302, 303, 307, 308].includes(status) || location === null) {
        throw this.#statusError(url, answer);
      }
      url = this.#redirect(url, location);
    }
    throw new DiffqkvError(
      'ERR_NETWORK',
      `${idText(this.#id)}: ${url.host} redirects more than ${MAX_REDIRECTS} times`,
    );
  }

  #redirect(from: URL, location: string): URL {
    const to = URL.canParse(location, from.href) ? new URL(location, from) : undefined;
    const secure = from.protocol === 'https:' ? /^https:$/ : /^https?:$/;
    if (to !== undefined && secure.test(to.protocol) && to.username === '') return to;
    throw new DiffqkvError(
      'ERR_NETWORK',
      `${idText(this.#id)}: ${from.host} redirects to an address that is not a safe URL`,
    );
  }

  /** One request, without redirects. */
  async #request(url: URL, headers: Record<string, string>): Promise<Answer> {
    this.checkAborted();
    const { timeoutMs } = this.#settings;
    const controller = new AbortController();
    const abort = () => controller.abort();
    let stalled = false;
    const onStall = () => {
      stalled = true;
      abort();
    };
    let timer = setTimeout(onStall, timeoutMs);
    this.#signal.addEventListener('abort', abort);
    const close = () => {
      clearTimeout(timer);
      this.#signal.removeEventListener('abort', abort);
      abort();
    };
    const translate = (error: unknown) => {
      this.checkAborted();
      if (!stalled) return this.#connectionError(url, error);
      return new TransientError(
        `${idText(this.#id)}: ${url.host} sent nothing for ${timeoutMs / 1000} s`,
      );
    };
    let response: Response;
    try {
      response = await fetch(url, { headers, redirect: 'manual', signal: controller.signal });
    } catch (error) {
      close();
      throw translate(error);
    }
    async function* read() {
      const reader = response.body?.getReader();
      try {
        while (reader !== undefined) {
          clearTimeout(timer);
          timer = setTimeout(onStall, timeoutMs);
          const { done, value } = await reader.read();
          if (done) return;
          clearTimeout(timer); // while the consumer is busy
          yield value;
        }
      } catch (error) {
        throw translate(error);
      } finally {
        close();
      }
    }
    return { status: response.status, headers: response.headers, body: read(), close };
  }

  #connectionError(url: URL, error: unknown): DiffqkvError {
    const { cause, message } = error as Error;
    const { code, message: reason } = (cause ?? {}) as NodeJS.ErrnoException;
    const text = `${idText(this.#id)}: cannot reach ${url.host}: ${reason || code || message}`;
    const isLasting = /CERT|TLS|SSL|INVALID_URL/.test(code ?? '');
    return isLasting ? new DiffqkvError('ERR_NETWORK', text) : new TransientError(text);
  }

  #statusError(url: URL, { status, headers }: Answer): DiffqkvError {
    const { name, revision } = this.#id;
    const { token, endpoint } = this.#settings;
    const what = headers.get('x-error-code');
    const host = url.host;
    if (status === 408 || status === 429 || status >= 500) {
      return new TransientError(
        `${name}: ${host} answered ${status}${status === 429 ? ' (too many requests)' : ''}`,
        retryAfter(headers.get('retry-after')),
      );
    }
    if (!this.#isEndpoint(url)) {
      return new DiffqkvError('ERR_NETWORK', `${name}: ${host} answered ${status}`);
    }
    if (what === 'GatedRepo') {
      return new DiffqkvError(
        'ERR_ACCESS_DENIED',
        `${name}: the model is gated: accept its license at ${endpoint}/${name}, and set HF_TOKEN ` +
          'to an access token of that account',
      );
    }
    if (what === 'RevisionNotFound') {
      return new DiffqkvError('ERR_MODEL_NOT_FOUND', `${name}: no revision ${revision} at ${host}`);
    }
    if (what === 'EntryNotFound') {
      return this.invalidAnswer('a file of the listing does not exist');
    }
    if (status === 404 || what === 'RepoNotFound' || (status === 401 && token === undefined)) {
      return new DiffqkvError(
        'ERR_MODEL_NOT_FOUND',
        `${name}: no such directory, and no such model at ${host}. If the model is private, set ` +
          'HF_TOKEN to an access token',
      );
    }
    if (status === 401 || status === 403) {
      return new DiffqkvError(
        'ERR_ACCESS_DENIED',
        `${name}: ${host} answered ${status}: ` +
          (token === undefined
            ? 'set HF_TOKEN to an access token'
            : 'the access token (HF_TOKEN, or the file that `hf auth login` writes) does not allow it'),
      );
    }
    return new DiffqkvError('ERR_NETWORK', `${name}: ${host} answered ${status}`);
  }
}

/** Milliseconds of a Retry-After header: seconds or a date. */
function retryAfter(text: string | null): number | undefined {
  if (text === null) return undefined;
  const ms = /^\d+$/.test(text) ? 1000 * Number(text) : Date.parse(text) - Date.now();
  return Number.isNaN(ms) ? undefined : Math.max(0, ms);
}

function isHex(text: unknown, length: number): text is string {
  return typeof text === 'string' && text.length === length && /^[0-9a-f]*$/.test(text);
}
