import { constants } from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { invalidCheckpoint } from './errors';

/**
 * Opens a regular file, calls `use` with it and its size, and closes it. Resolves to null if it is
 * something else, such as a FIFO. Rejects with the error of the file system if it cannot be read.
 */
export async function withRegularFile<T>(
  file: string,
  use: (handle: FileHandle, size: number) => Promise<T>,
): Promise<T | null> {
  // Opening a FIFO without O_NONBLOCK waits until another process writes to it.
  const handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
  try {
    const status = await handle.stat();
    return status.isFile() ? await use(handle, status.size) : null;
  } finally {
    await handle.close();
  }
}

/** Reads from `position` until `bytes` is full or the file ends. Resolves to the bytes read. */
export async function fill(
  handle: FileHandle,
  bytes: Uint8Array,
  position: number,
): Promise<number> {
  let length = 0;
  while (length < bytes.length) {
    const rest = bytes.length - length;
    const { bytesRead } = await handle.read(bytes, length, rest, position + length);
    if (bytesRead === 0) break;
    length += bytesRead;
  }
  return length;
}

/**
 * Reads a regular file of a checkpoint of at most `maxBytes`. Resolves to null if it does not
 * exist. Rejects with ERR_INVALID_CHECKPOINT if it is something else, such as a FIFO, if it is
 * longer, or if it cannot be read.
 */
export async function readRegularFile(file: string, maxBytes: number): Promise<Buffer | null> {
  try {
    const bytes = await withRegularFile(file, async (handle, size) => {
      if (size > maxBytes) {
        throw invalidCheckpoint(file, `has ${size} bytes; the limit is ${maxBytes}`);
      }
      // Threads share the memory.
      const buffer = Buffer.from(new SharedArrayBuffer(size));
      return buffer.subarray(0, await fill(handle, buffer, 0));
    });
    if (bytes === null) throw invalidCheckpoint(file, 'not a regular file');
    return bytes;
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    if (code === 'ERR_INVALID_CHECKPOINT') throw error;
    throw invalidCheckpoint(file, `cannot be read: ${message}`);
  }
}
