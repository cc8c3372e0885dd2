// The safetensors format: 8 bytes of header length, a header in JSON, then the bytes of the tensors. Here only headers
// are held in memory.

import { type FileHandle, open, stat } from 'node:fs/promises';
import { CliError } from './errors';

export interface StoredTensor {
  name: string;
  /** As the file says it: 'BF16', 'F32', 'I64', ... */
  dtype: string;
  shape: number[];
  bytes: number;
}

export interface SafetensorsFile {
  path: string;
  /** `__metadata__`, where there is one. */
  metadata?: Record<string, string>;
  /** In the order of their bytes; `position` is the first one's, from the start of the file. */
  tensors: (StoredTensor & { position: number })[];
}

const MAX_HEADER_BYTES = 100_000_000; // the limit of the format's own reader
const MAX_RANK = 16;

// Bits of one element.
const typeBits: Record<string, number> = {
  ...{
    F64: 64,
    I64: 64,
    U64: 64,
    C64: 64,
    F32: 32,
    I32: 32,
    U32: 32,
    BF16: 16,
    F16: 16,
    I16: 16,
    U16: 16,
  },
  ...{ I8: 8, U8: 8, BOOL: 8, F8_E4M3: 8, F8_E5M2: 8, F8_E8M0: 8, F8_E4M3FNUZ: 8, F8_E5M2FNUZ: 8 },
  ...{ F6_E2M3: 6, F6_E3M2: 6, F4: 4 },
};

/** Text from a file, fit for a message: not too long, control characters escaped. */
export function printable(text: string): string {
  const short = text.length > 120 ? `${text.slice(0, 120)}...` : text;
  return short.replace(/\p{Cc}/gu, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** A value from a JSON file, for a message. */
export function shown(value: unknown): string {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return 'an object';
  if (Array.isArray(value) && value.some((item) => typeof item === 'object' && item !== null))
    return 'a nested array';
  return printable(JSON.stringify(value) ?? 'missing');
}

/** ERR_INVALID_CHECKPOINT: the file, and what is wrong with it. */
export function broken(path: string, what: string): CliError {
  return new CliError('ERR_INVALID_CHECKPOINT', `${path}: ${what}`);
}

/** Calls the file system about an input; what fails is ERR_INVALID_CHECKPOINT. */
export async function reading<T>(path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof CliError || code === undefined) throw error;
    throw broken(path, code === 'ENOENT' ? 'there is no such file' : `cannot be read: ${message}`);
  }
}

/** Opens a regular file for reading. */
export async function openFile(path: string): Promise<{ file: FileHandle; size: number }> {
  const info = await reading(path, () => stat(path)); // before it is opened: opening a pipe would wait
  if (!info.isFile()) throw broken(path, 'is not a file');
  return { file: await reading(path, () => open(path)), size: info.size };
}

/** Opens a regular file, hands it to `use`, and closes it. */
export async function withFile<T>(
  path: string,
  use: (file: FileHandle, size: number) => Promise<T>,
): Promise<T> {
  const { file, size } = await openFile(path);
  try {
    return await use(file, size);
  } finally {
    await file.close();
  }
}

/** Fills `buffer` from `position` on. */
export async function readFully(
  path: string,
  file: FileHandle,
  buffer: Uint8Array,
  position: number,
): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const rest = buffer.length - done;
    const { bytesRead } = await reading(path, () => file.read(buffer, done, rest, position + done));
    if (bytesRead === 0)
      throw broken(path, `ends at byte ${position + done}; it has become shorter`);
    done += bytesRead;
  }
}

/** Parses UTF-8 text that must be one JSON object. */
export function parseObject(path: string, bytes: Uint8Array, what = ''): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw broken(path, `${what}not valid JSON: ${printable((error as Error).message)}`);
  }
  if (!isObject(value)) throw broken(path, `${what}a JSON object is wanted`);
  return value;
}

/** The other way round, for files that people read. */
export function formatObject(path: string, value: Record<string, unknown>): string {
  try {
    return `${JSON.stringify(value, null, 2)}\n`;
  } catch {
    throw broken(path, 'nested too deep');
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reads and checks the header: the tensors that it gives lie in the file, and cover its data whole, each byte once. */
export function readSafetensors(path: string): Promise<SafetensorsFile> {
  return withFile(path, async (file, size) => {
    if (size < 8) throw broken(path, `${size} bytes: too short for a safetensors file`);
    const start = Buffer.alloc(8);
    await readFully(path, file, start, 0);
    const length = start.readBigUInt64LE();
    if (length > MAX_HEADER_BYTES)
      throw broken(path, `a header of ${length} bytes; the limit is ${MAX_HEADER_BYTES}`);
    const headerBytes = Number(length);
    if (headerBytes > size - 8)
      throw broken(
        path,
        `truncated: a header of ${headerBytes} bytes, and only ${size - 8} bytes follow its length`,
      );
    const text = Buffer.alloc(headerBytes);
    await readFully(path, file, text, 8);
    return parseHeader(path, text, size);
  });
}

function parseHeader(path: string, text: Uint8Array, size: number): SafetensorsFile {
  const { __metadata__: metadata, ...entries } = parseObject(path, text, 'the header: ');
  if (
    metadata !== undefined &&
    !(isObject(metadata) && Object.values(metadata).every((v) => typeof v === 'string'))
  )
    throw broken(path, '__metadata__ is not an object of strings');
  const dataStart = 8 + text.length;
  const tensors = Object.entries(entries).map(([name, entry]) => {
    const { begin, ...tensor } = parseEntry(path, name, entry, size - dataStart);
    return { ...tensor, position: dataStart + begin };
  });
  tensors.sort((a, b) => a.position - b.position || a.bytes - b.bytes);
  let covered = dataStart;
  let previous = '';
  for (const { name, position, bytes } of tensors) {
    if (position < covered)
      throw broken(
        path,
        `the bytes of tensor '${printable(name)}' overlap those of '${printable(previous)}'`,
      );
    if (position > covered)
      throw broken(
        path,
        `tensor '${printable(name)}': before its bytes is a hole, which no tensor covers`,
      );
    covered += bytes;
    previous = name;
  }
  if (covered !== size)
    throw broken(
      path,
      `its tensors cover ${covered - dataStart} of ${size - dataStart} bytes of data`,
    );
  return { path, metadata: metadata as Record<string, string> | undefined, tensors };
}

function parseEntry(
  path: string,
  name: string,
  entry: unknown,
  dataBytes: number,
): StoredTensor & { begin: number } {
  const fail = (what: string) => broken(path, `tensor '${printable(name)}': ${what}`);
  if (!isObject(entry)) throw fail('not described by an object');
  const { dtype, shape, data_offsets: offsets } = entry;
  const isSize = (value: unknown): value is number =>
    Number.isSafeInteger(value) && (value as number) >= 0;
  if (typeof dtype !== 'string' || !Object.hasOwn(typeBits, dtype))
    throw fail(`dtype is ${shown(dtype)}`);
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isSize))
    throw fail(`shape is ${shown(shape)}; at most ${MAX_RANK} integers from 0 on are wanted`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize))
    throw fail(`data_offsets is ${shown(offsets)}; two integers from 0 on are wanted`);
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw fail(`data_offsets [${begin}, ${end}) end before they begin`);
  if (end > dataBytes)
    throw fail(
      `data_offsets [${begin}, ${end}) reach past the end of ${dataBytes} bytes of data; truncated?`,
    );
  const bits = shape.reduce((a, b) => a * BigInt(b), BigInt(typeBits[dtype] as number));
  if (bits !== 8n * BigInt(end - begin))
    throw fail(
      `its data_offsets are ${end - begin} bytes, and ${dtype} of shape ${shown(shape)} needs ${bits / 8n}`,
    );
  return { name, dtype, shape, begin, bytes: end - begin };
}

/** The start of a file that holds these tensors, one after another. */
export function safetensorsHeader(
  metadata: Record<string, string> | undefined,
  tensors: StoredTensor[],
): Buffer {
  let offset = 0;
  const entries = tensors.map(({ name, dtype, shape, bytes }) => {
    const data_offsets = [offset, offset + bytes];
    offset += bytes;
    return [name, { dtype, shape, data_offsets }];
  });
  const all = metadata === undefined ? entries : [['__metadata__', metadata], ...entries];
  const text = Buffer.from(JSON.stringify(Object.fromEntries(all)));
  const header = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' '); // the data begins at a multiple of 8
  header.writeBigUInt64LE(BigInt(header.length - 8));
  text.copy(header, 8);
  return header;
}
