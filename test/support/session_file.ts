// Reads and forges the files of saved sessions (lib/session_file.ts has the format).

import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';

const sha256 = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest();

export interface SessionFileParts {
  version: number;
  header: Record<string, unknown>;
  /** Tokens and pages. */
  body: Buffer;
}

export function readSessionFile(file: string): SessionFileParts {
  const bytes = readFileSync(file);
  const length = bytes.readUInt32LE(12);
  return {
    version: bytes.readUInt32LE(8),
    header: JSON.parse(bytes.subarray(16, 16 + length).toString()),
    body: bytes.subarray(16 + length + 32, -32),
  };
}

/** Writes a file whose hashes are right. */
export function writeSessionFile(file: string, { version, header, body }: SessionFileParts): void {
  const text = Buffer.from(JSON.stringify(header));
  const fixed = Buffer.alloc(16);
  fixed.write('DQKVSESS');
  fixed.writeUInt32LE(version, 8);
  fixed.writeUInt32LE(text.length, 12);
  const first = Buffer.concat([fixed, text]);
  const hashed = Buffer.concat([first, sha256(first), body]);
  writeFileSync(file, Buffer.concat([hashed, sha256(hashed)]));
}
