import { escapeControls } from '../lib/errors';

/** An error of the command line. `code` is one of lib's error codes. */
export class CliError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** Formats an error as one line, without control characters: `diffqkv: message (CODE)`. */
export function errorLine(error: unknown): string {
  const { message = String(error), code } = (error ?? {}) as { message?: string; code?: string };
  const line = escapeControls(message.trim().replace(/\s*\n\s*/g, '; '));
  return `diffqkv: ${line}${code === undefined ? '' : ` (${code})`}\n`;
}
