// The safetensors format: the header length in 8 bytes, a JSON header, then the bytes of the
// tensors. Only headers are kept in memory.

import { type FileHandle, open, stat } from 'node:fs/promises';
import { escapeControls } from '../lib/errors';
import { CliError } from './errors';

export interface StoredTensor {
  name: string;
  /** The dtype in the file: 'BF16', 'F32', 'I64', ... */
  dtype: string;
  shape: number[];
  bytes: number;
}

export interface SafetensorsFile {
  path: string;
  /** `__metadata__`, if present. */
  metadata?: Record<string, string>;
  /** In the order of their bytes. `position` is the offset of the first byte in the file. */
  tensors: (StoredTensor & { position: number })[];
}

const MAX_HEADER_BYTES = 100_000_000; // the limit of the reference implementation
const MAX_RANK = 16;

// Bits per element.
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

/** Text of a file for a message: at most 120 characters, with control characters escaped. */
export function printable(text: string): string {
  const short = text.length > 120 ? `${text.slice(0, 120)}...` : text;
  return escapeControls(short);
}

/** A value from a JSON file, for a message. */
export function shown(value: unknown): string {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return 'an object';
  if (Array.isArray(value) && value.some((item) => typeof item === 'object' && item !== null))
    return 'a nested array';
  if (typeof value === 'number') return String(value); // JSON has no NaN and Infinity
  return printable(JSON.stringify(value) ?? 'missing');
}

/** ERR_INVALID_CHECKPOINT: "`path`: `problem`". */
export function invalidCheckpoint(path: string, what: string): CliError {
  return new CliError('ERR_INVALID_CHECKPOINT', `${path}: ${what}`);
}

/** Calls the file system. A system error becomes ERR_INVALID_CHECKPOINT. */
export async function reportReadErrors<T>(path: string, call: () => Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (error instanceof CliError || code === undefined) throw error;
    throw invalidCheckpoint(
      path,
      code === 'ENOENT' ? 'no such file' : `cannot be read: ${message}`,
    );
  }
}

/** Opens a regular file for reading. */
export async function openFile(path: string): Promise<{ file: FileHandle; size: number }> {
  // Before opening: opening a pipe would wait.
  const info = await reportReadErrors(path, () => stat(path));
  if (!info.isFile()) throw invalidCheckpoint(path, 'not a regular file');
  return { file: await reportReadErrors(path, () => open(path)), size: info.size };
}

/** Opens a regular file, passes it to `use`, and closes it. */
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

/** Fills `buffer` with the bytes of the file from `position`. */
export async function readFully(
  path: string,
  file: FileHandle,
  buffer: Uint8Array,
  position: number,
): Promise<void> {
  for (let done = 0; done < buffer.length; ) {
    const rest = buffer.length - done;
    const { bytesRead } = await reportReadErrors(path, () =>
      file.read(buffer, done, rest, position + done),
    );
    if (bytesRead === 0)
      throw invalidCheckpoint(path, `ends at byte ${position + done}: the file became shorter`);
    done += bytesRead;
  }
}

/** Parses UTF-8 text that must be one JSON object. */
export function parseObject(path: string, bytes: Uint8Array, what = ''): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes));
  } catch (error) {
    throw invalidCheckpoint(path, `${what}not valid JSON: ${printable((error as Error).message)}`);
  }
  if (!isObject(value)) throw invalidCheckpoint(path, `${what}not a JSON object`);
  return value;
}

/** Formats an object as indented JSON. */
export function formatObject(path: string, value: Record<string, unknown>): string {
  try {
    return `${JSON.stringify(value, null, 2)}\n`;
  } catch {
    throw invalidCheckpoint(path, 'nested too deeply');
  }
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reads the header, and checks that its tensors cover each byte of the data exactly once. */
export function readSafetensors(path: string): Promise<SafetensorsFile> {
  return withFile(path, async (file, size) => {
    if (size < 8)
      throw invalidCheckpoint(path, `has ${size} bytes; a safetensors file has at least 8`);
    const start = Buffer.alloc(8);
    await readFully(path, file, start, 0);
    const length = start.readBigUInt64LE();
    if (length > MAX_HEADER_BYTES)
      throw invalidCheckpoint(
        path,
        `the header has ${length} bytes; the limit is ${MAX_HEADER_BYTES}`,
      );
    const headerBytes = Number(length);
    if (headerBytes > size - 8)
      throw invalidCheckpoint(
        path,
        `truncated: the header has ${headerBytes} bytes, but only ${size - 8} follow`,
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
    throw invalidCheckpoint(path, '__metadata__ is not an object of strings');
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
      throw invalidCheckpoint(
        path,
        `the bytes of tensor '${printable(name)}' overlap those of '${printable(previous)}'`,
      );
    if (position > covered)
      throw invalidCheckpoint(
        path,
        `tensor '${printable(name)}': no tensor covers the bytes before it`,
      );
    covered += bytes;
    previous = name;
  }
  if (covered !== size)
    throw invalidCheckpoint(
      path,
      `the tensors cover ${covered - dataStart} of ${size - dataStart} bytes of data`,
    );
  return { path, metadata: metadata as Record<string, string> | undefined, tensors };
}

function parseEntry(
  path: string,
  name: string,
  entry: unknown,
  dataBytes: number,
): StoredTensor & { begin: number } {
  const fail = (what: string) => invalidCheckpoint(path, `tensor '${printable(name)}': ${what}`);
  if (!isObject(entry)) throw fail('its entry must be an object');
  const { dtype, shape, data_offsets: offsets } = entry;
  const isSize = (value: unknown): value is number =>
    Number.isSafeInteger(value) && (value as number) >= 0;
  if (typeof dtype !== 'string' || !Object.hasOwn(typeBits, dtype))
    throw fail(`dtype is ${shown(dtype)}, which is unknown`);
  if (!Array.isArray(shape) || shape.length > MAX_RANK || !shape.every(isSize))
    throw fail(`shape is ${shown(shape)}; it must be at most ${MAX_RANK} non-negative integers`);
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize))
    throw fail(`data_offsets is ${shown(offsets)}; it must be two non-negative integers`);
  const [begin, end] = offsets as [number, number];
  if (begin > end) throw fail(`data_offsets [${begin}, ${end}): the end is before the start`);
  if (end > dataBytes)
    throw fail(`data_offsets [${begin}, ${end}) exceed the ${dataBytes} bytes of data; truncated?`);
  const bits = shape.reduce((a, b) => a * BigInt(b), BigInt(typeBits[dtype] as number));
  if (bits !== 8n * BigInt(end - begin))
    throw fail(
      `data_offsets span ${end - begin} bytes; ${dtype} of shape ${shown(shape)} has ${bits / 8n}`,
    );
  return { name, dtype, shape, begin, bytes: end - begin };
}

/** The header length and the header of a file with these tensors, one after another. */
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
  // The data must start at a multiple of 8.
  const header = Buffer.alloc(8 + Math.ceil(text.length / 8) * 8, ' ');
  header.writeBigUInt64LE(BigInt(header.length - 8));
  text.copy(header, 8);
  return header;
}
