// The file of a saved session:
//
//   8 bytes    "DQKVSESS"
//   u32        version of this format; integers are little-endian
//   u32        bytes of the header
//   header     JSON, `Header`
//   32 bytes   SHA-256 of everything before
//   tokens     i32 [kvLen]
//   pages      as csrc/model/kv_image.h has them
//   32 bytes   SHA-256 of everything before
//
// The first hash detects a changed header before its contents are used. Pages are written and read in
// pieces, so that a long session neither blocks the event loop nor is in memory twice.

import { createHash, type Hash, randomBytes } from 'node:crypto';
import { type FileHandle, lstat, open, realpath, rename, stat, unlink } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { isAborted, throwIfAborted } from './abort';
import type {
  NativeModel,
  NativePageLayout,
  NativeSavedSession,
  NativeSelectiveV,
  NativeSession,
} from './addon';
import { aborted, awaitNative, callNative, checkInteger, DiffqkvError, invalid } from './errors';
import { fill, withRegularFile } from './files';
import { callOrder, native } from './internal';
import type { Model } from './model';
import { readOptions } from './options';
import type { Session } from './session';

const MAGIC = Buffer.from('DQKVSESS');
const VERSION = 1;
const FIXED_BYTES = MAGIC.length + 8;
const MAX_HEADER_BYTES = 2 ** 16;
const HASH_BYTES = 32;
const PIECE_BYTES = 2 ** 20;
const MAX_KV_LEN = 2 ** 30; // of any session

/** Options of {@link Model.loadSession}. */
export interface LoadSessionOptions {
  /**
   * Maximum number of tokens in the cache: at least those of the saved session. Default: that of the
   * saved session.
   */
  maxKvLen?: number;
  /** Aborts the load, which rejects with ABORT_ERR within 1 MiB of the file. */
  signal?: AbortSignal;
}

interface Header {
  model: {
    architecture: string;
    numLayers: number;
    dtype: string;
    weightType: string;
    /** SHA-256 of `NativeModel.fingerprint`. */
    fingerprint: string;
  };
  /** `NativePageLayout.name` of the device. */
  pageLayout: string;
  maxKvLen: number;
  kType: NativeSavedSession['kType'];
  vType: NativeSavedSession['vType'];
  selectiveV: NativeSelectiveV | null;
  kvLen: number;
  ropeLength: number;
  promptLength: number;
  first: number;
  pageBytes: number;
}

/** Writes a session to a file, as `Session.save` says. */
export async function saveSession(
  session: Session,
  file: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const path = checkFile(file);
  throwIfAborted(signal);
  // The fork shares the pages and keeps the state of now, while later calls use the session.
  const fork = await session[callOrder].call(() => session[native].fork(), signal);
  try {
    const { model } = session;
    const saved = await awaitNative(() => fork.saved());
    const description = await describeModel(model);
    const { tokens, pageBytes, maxKvLen, kType, vType, ropeLength, promptLength, first } = saved;
    const header: Header = {
      model: description,
      pageLayout: pageLayout(model, saved).name,
      maxKvLen,
      ...{ kType, vType },
      selectiveV: saved.selectiveV ?? null,
      kvLen: tokens.length,
      ...{ ropeLength, promptLength, first, pageBytes },
    };
    await replaceFile(path, async (handle) => {
      const out = new Writer(handle);
      await out.write(headerBytes(header));
      await out.writeHash();
      await out.write(new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength));
      const buffer = new Uint8Array(Math.min(PIECE_BYTES, pageBytes));
      for (let offset = 0; offset < pageBytes; offset += buffer.length) {
        if (isAborted(signal)) throw aborted('while the session was saved');
        const array = buffer.subarray(0, pageBytes - offset);
        await awaitNative(() => fork.readPages({ offset, array }));
        await out.write(array);
      }
      await out.writeHash();
      if (isAborted(signal)) throw aborted('while the session was saved');
    });
  } finally {
    fork.dispose();
  }
}

/** Creates the native session of a file, as `Model.loadSession` says. */
export async function loadNativeSession(
  model: Model,
  file: string,
  options: LoadSessionOptions,
): Promise<NativeSession> {
  const names = { maxKvLen: true, signal: true } as const;
  const { maxKvLen, signal } = readOptions('options', options, names);
  if (maxKvLen !== undefined) checkInteger('maxKvLen', maxKvLen, 1, MAX_KV_LEN);
  const path = checkFile(file);
  throwIfAborted(signal);
  const { pageTokens } = model.kvCache; // throws ERR_DISPOSED
  try {
    const session = await withRegularFile(path, (handle, size) =>
      readSession(new Reader(path, handle, size), model, pageTokens, { maxKvLen, signal }),
    );
    if (session === null) throw sessionFile(path, 'not a regular file');
    return session;
  } catch (error) {
    throw fileError(path, 'read', error);
  }
}

async function readSession(
  input: Reader,
  model: Model,
  pageTokens: number,
  { maxKvLen, signal }: LoadSessionOptions,
): Promise<NativeSession> {
  const header = await readHeader(input);
  await checkModel(input, header, model);
  const { kvLen, pageBytes, kType, vType, ropeLength, promptLength, first } = header;
  if (maxKvLen !== undefined && maxKvLen < kvLen) {
    throw invalid('maxKvLen', `at least ${kvLen}, the tokens of the saved session`, maxKvLen);
  }
  // Only where no layer sees all keys, first rows are forgotten. A truncate may leave no other.
  const { numLayers, numWindowLayers } = model.config;
  const pages = Math.ceil(kvLen / pageTokens);
  const lastFirst = numWindowLayers === numLayers ? pages * pageTokens : 0;
  if (first % pageTokens !== 0 || first > lastFirst) {
    throw sessionFile(
      input.file,
      `malformed: first must be a multiple of ${pageTokens} from 0 to ${lastFirst}, not ${first}`,
    );
  }
  if (pageBytes !== (pages - first / pageTokens) * pageLayout(model, header).bytes) {
    throw sessionFile(input.file, 'malformed: pageBytes is not that of its pages');
  }
  const rest = 4 * kvLen + pageBytes + HASH_BYTES;
  if (input.bytesLeft !== rest) {
    throw sessionFile(
      input.file,
      `has ${input.bytesLeft} bytes after its header, not ${rest}: it was truncated or changed`,
    );
  }
  const tokens = await readTokens(input, header, model, signal);
  const session = await restore(input.file, model[native], {
    maxKvLen: maxKvLen ?? header.maxKvLen,
    ...{ kType, vType, selectiveV: header.selectiveV ?? undefined },
    ...{ tokens, ropeLength, promptLength, first },
  });
  try {
    const buffer = new Uint8Array(Math.min(PIECE_BYTES, pageBytes));
    for (let offset = 0; offset < pageBytes; offset += buffer.length) {
      if (isAborted(signal)) throw aborted('while the session was loaded');
      const array = buffer.subarray(0, pageBytes - offset);
      await input.read(array);
      await awaitNative(() => session.writePages({ offset, array }));
    }
    await input.checkHash();
    if (isAborted(signal)) throw aborted('while the session was loaded');
    return session;
  } catch (error) {
    session.dispose();
    throw error;
  }
}

function newTokens(count: number): Int32Array {
  try {
    return new Int32Array(count);
  } catch {
    throw new DiffqkvError(
      'ERR_OUT_OF_MEMORY',
      `the process has no memory for the ${count} tokens of the saved session`,
    );
  }
}

/** Reads in pieces, so that neither their number nor a forged one blocks the event loop. */
async function readTokens(
  input: Reader,
  { kvLen }: Header,
  { config }: Model,
  signal: AbortSignal | undefined,
): Promise<Int32Array> {
  const tokens = newTokens(kvLen);
  const pieceTokens = PIECE_BYTES / tokens.BYTES_PER_ELEMENT;
  for (let start = 0; start < kvLen; start += pieceTokens) {
    if (isAborted(signal)) throw aborted('while the session was loaded');
    const piece = tokens.subarray(start, start + pieceTokens);
    await input.read(new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength));
    const wrong = piece.findIndex((token) => token < 0 || token >= config.vocabSize);
    if (wrong < 0) continue;
    throw sessionFile(
      input.file,
      `malformed: tokens[${start + wrong}] is ${piece[wrong]}; it must be from 0 to ` +
        `${config.vocabSize - 1} (vocabSize - 1)`,
    );
  }
  return tokens;
}

async function restore(
  file: string,
  model: NativeModel,
  saved: Parameters<NativeModel['restoreSession']>[0],
): Promise<NativeSession> {
  try {
    return await awaitNative(() => model.restoreSession(saved));
  } catch (error) {
    if (!(error instanceof DiffqkvError) || error.code !== 'ERR_INVALID_ARGUMENT') throw error;
    throw sessionFile(file, `malformed: ${error.message}`);
  }
}

async function readHeader(input: Reader): Promise<Header> {
  const { file } = input;
  const fixed = Buffer.alloc(FIXED_BYTES);
  if (input.bytesLeft < FIXED_BYTES) throw sessionFile(file, 'not a saved session');
  await input.read(fixed);
  if (!fixed.subarray(0, MAGIC.length).equals(MAGIC))
    throw sessionFile(file, 'not a saved session');
  const version = fixed.readUInt32LE(MAGIC.length);
  if (version !== VERSION) {
    throw sessionFile(file, `has version ${version}; this release reads version ${VERSION}`);
  }
  const bytes = fixed.readUInt32LE(MAGIC.length + 4);
  if (bytes > MAX_HEADER_BYTES || bytes + HASH_BYTES > input.bytesLeft) {
    throw sessionFile(file, `its header has ${bytes} bytes: it was truncated or changed`);
  }
  const text = Buffer.alloc(bytes);
  await input.read(text);
  await input.checkHash();
  const header = parseHeader(text.toString());
  if (typeof header === 'string') throw sessionFile(file, `malformed: ${header}`);
  return header;
}

function headerBytes(header: Header): Buffer {
  const text = Buffer.from(JSON.stringify(header));
  const fixed = Buffer.alloc(FIXED_BYTES);
  MAGIC.copy(fixed);
  fixed.writeUInt32LE(VERSION, MAGIC.length);
  fixed.writeUInt32LE(text.length, MAGIC.length + 4);
  return Buffer.concat([fixed, text]);
}

const cacheTypes: readonly unknown[] = ['f32', 'f16', 'bf16', 'i8', 'f8e4m3'];

/** The header, or what is wrong with it. Its hash was right, but anyone can compute a hash. */
function parseHeader(text: string): Header | string {
  try {
    const header = JSON.parse(text) as Header;
    const { model, selectiveV } = header;
    const isLength = (value: number) => Number.isInteger(value) && value >= 0 && value < 2 ** 31;
    const isText = (value: unknown) => typeof value === 'string';
    const valid: Record<string, boolean> = {
      model: [model.architecture, model.dtype, model.weightType, model.fingerprint].every(isText),
      numLayers: isLength(model.numLayers),
      pageLayout: isText(header.pageLayout),
      maxKvLen: isLength(header.maxKvLen) && header.maxKvLen > 0 && header.maxKvLen <= MAX_KV_LEN,
      kType: cacheTypes.includes(header.kType),
      vType: cacheTypes.includes(header.vType),
      selectiveV:
        selectiveV === null ||
        (isLength(selectiveV.topK) &&
          selectiveV.topK > 0 &&
          typeof selectiveV.renormalize === 'boolean'),
      kvLen: isLength(header.kvLen) && header.kvLen <= header.maxKvLen,
      ropeLength: isLength(header.ropeLength),
      promptLength: isLength(header.promptLength),
      first: isLength(header.first),
      pageBytes: Number.isSafeInteger(header.pageBytes) && header.pageBytes >= 0,
    };
    const wrong = Object.keys(valid).find((name) => !valid[name]);
    return wrong === undefined ? header : `${wrong} of the header is invalid`;
  } catch {
    return 'the header is not an object with the fields of a session';
  }
}

async function checkModel({ file }: Reader, header: Header, model: Model): Promise<void> {
  const { name } = pageLayout(model, header);
  if (header.pageLayout !== name) {
    throw sessionFile(
      file,
      `was saved on another kind of device: its pages are "${header.pageLayout}", those of ` +
        `${model.device.id} are "${name}"; load it on a device of the kind that saved it`,
    );
  }
  const here = await describeModel(model);
  if (header.model.fingerprint === here.fingerprint) return;
  const [saved, loaded] = [header.model, here].map(
    ({ architecture, numLayers, dtype, weightType }) =>
      `${architecture} with ${numLayers} layers in ${dtype}, matrices in ${weightType}`,
  );
  throw sessionFile(
    file,
    `was saved by another model: ${saved === loaded ? 'its weights or settings differ' : `${saved}, not ${loaded}`}`,
  );
}

function pageLayout(
  model: Model,
  { kType, vType }: Pick<Header, 'kType' | 'vType'>,
): NativePageLayout {
  return callNative(() => model[native].pageLayout({ kType, vType }));
}

const fingerprints = new WeakMap<NativeModel, Promise<string>>();

async function describeModel(model: Model): Promise<Header['model']> {
  const key = model[native];
  const known = fingerprints.get(key);
  const fingerprint = known ?? awaitNative(() => key.fingerprint()).then(sha256);
  if (known === undefined) {
    fingerprints.set(key, fingerprint);
    fingerprint.catch(() => fingerprints.delete(key));
  }
  const { config, dtype, weightType } = model;
  const { architecture, numLayers } = config;
  return { architecture, numLayers, dtype, weightType, fingerprint: await fingerprint };
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

/** Appends to a file and hashes what it writes. */
class Writer {
  readonly #handle: FileHandle;
  readonly #hash: Hash = createHash('sha256');

  constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  async write(bytes: Uint8Array): Promise<void> {
    this.#hash.update(bytes);
    for (let done = 0; done < bytes.length; ) {
      done += (await this.#handle.write(bytes, done, bytes.length - done)).bytesWritten;
    }
  }

  /** Writes the hash of everything before. */
  async writeHash(): Promise<void> {
    await this.write(this.#hash.copy().digest());
  }
}

/** Reads a file from its beginning and hashes what it reads. */
class Reader {
  readonly file: string;
  readonly #handle: FileHandle;
  readonly #size: number;
  readonly #hash: Hash = createHash('sha256');
  #position = 0;

  constructor(file: string, handle: FileHandle, size: number) {
    this.file = file;
    this.#handle = handle;
    this.#size = size;
  }

  get bytesLeft(): number {
    return this.#size - this.#position;
  }

  /** Fills `bytes`, or rejects. */
  async read(bytes: Uint8Array): Promise<void> {
    if ((await fill(this.#handle, bytes, this.#position)) < bytes.length) {
      throw sessionFile(this.file, 'was truncated while it was read');
    }
    this.#position += bytes.length;
    this.#hash.update(bytes);
  }

  /** Reads the hash of everything before, and rejects if it differs. */
  async checkHash(): Promise<void> {
    const expected = this.#hash.copy().digest();
    const stored = Buffer.alloc(HASH_BYTES);
    await this.read(stored);
    if (!stored.equals(expected)) {
      throw sessionFile(this.file, 'was changed: its contents do not have the hash that it names');
    }
  }
}

/**
 * Writes a file under another name in its directory and renames it, so that its name has the old
 * contents or the new ones, whatever happens. Only the owner may read it.
 */
async function replaceFile(
  file: string,
  write: (handle: FileHandle) => Promise<void>,
): Promise<void> {
  const target = await fileToReplace(file);
  const directory = dirname(target);
  const temporary = join(directory, `.diffqkv-${randomBytes(8).toString('hex')}.tmp`);
  try {
    const handle = await open(temporary, 'wx', 0o600);
    try {
      await write(handle);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await rename(temporary, target);
  } catch (error) {
    await unlink(temporary).catch(() => {});
    throw fileError(file, 'written', error);
  }
  await syncDirectory(directory);
}

/**
 * `file` or, if it is a symbolic link, its target. Rejects unless that is a regular file, or is no
 * link and does not exist in a directory that does.
 */
async function fileToReplace(file: string): Promise<string> {
  try {
    const target = await realpath(file);
    if ((await stat(target)).isFile()) return target;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw fileError(file, 'written', error);
    if (await exists(file)) {
      throw sessionFile(
        file,
        'a symbolic link to a file that does not exist: remove the link, or save to its target',
      );
    }
    const directory = dirname(file);
    if (await exists(directory)) return file;
    throw sessionFile(
      file,
      `cannot be written: the directory ${directory} does not exist: create it`,
    );
  }
  throw sessionFile(
    file,
    'not a regular file, so it is not replaced: save to the path of a new or a regular file',
  );
}

function exists(path: string): Promise<boolean> {
  return lstat(path).then(
    () => true,
    () => false,
  );
}

/** Makes a rename outlast a power failure, on systems that can open a directory. */
async function syncDirectory(directory: string): Promise<void> {
  const handle = await open(directory).catch(() => null);
  await handle?.sync().catch(() => {});
  await handle?.close();
}

/** The absolute path. Throws ERR_INVALID_ARGUMENT unless `file` is a path. */
function checkFile(file: string): string {
  if (typeof file !== 'string' || file === '' || file.includes('\0')) {
    throw invalid('file', 'the path of a file', file);
  }
  return resolve(file);
}

/** ERR_SESSION_FILE: "`file`: `problem`". */
function sessionFile(file: string, problem: string): DiffqkvError {
  return new DiffqkvError('ERR_SESSION_FILE', `${file}: ${problem}`);
}

/** ERR_SESSION_FILE for an error of the file system; any other error is returned unchanged. */
function fileError(file: string, done: 'read' | 'written', error: unknown): unknown {
  const { syscall, message } = error as NodeJS.ErrnoException;
  if (typeof syscall !== 'string') return error;
  return sessionFile(file, `cannot be ${done}: ${message}`);
}
