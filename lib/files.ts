import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { invalidCheckpoint } from './errors';

/**
 * Reads a regular file of a checkpoint of at most `maxBytes`. Resolves to null if it does not
 * exist. Rejects with ERR_INVALID_CHECKPOINT if it is something else, such as a FIFO, if it is
 * longer, or if it cannot be read.
 */
export async function readRegularFile(file: string, maxBytes: number): Promise<Buffer | null> {
  try {
    // Opening a FIFO without O_NONBLOCK waits until another process writes to it.
    const handle = await open(file, constants.O_RDONLY | (constants.O_NONBLOCK ?? 0));
    try {
      const status = await handle.stat();
      if (!status.isFile()) throw invalidCheckpoint(file, 'not a regular file');
      const { size } = status;
      if (size > maxBytes) {
        throw invalidCheckpoint(file, `has ${size} bytes; the limit is ${maxBytes}`);
      }
      // Threads share the memory.
      const bytes = Buffer.from(new SharedArrayBuffer(size));
      let length = 0;
      while (length < size) {
        const { bytesRead } = await handle.read(bytes, length, size - length, length);
        if (bytesRead === 0) break;
        length += bytesRead;
      }
      return bytes.subarray(0, length);
    } finally {
      await handle.close();
    }
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    if (code === 'ERR_INVALID_CHECKPOINT') throw error;
    throw invalidCheckpoint(file, `cannot be read: ${message}`);
  }
}
