import { escapeControls } from '../lib/errors';

/** An error of the command line. `code` is one of lib's error codes. */
export class CliError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** Options of the API, in remedies too, and how the command line names them. */
const FLAGS = new Map([
  ['maxKvLen', '--max-kv-len'],
  ['maxTokens', '--max-tokens'],
  ['omit system', 'omit --system'],
]);

/** Formats an error as one line, without control characters: `diffqkv: message (CODE)`. */
export function errorLine(error: unknown): string {
  const { message = String(error), code } = (error ?? {}) as { message?: string; code?: string };
  const named = message.replace(
    /\b(maxKvLen|maxTokens|omit system)\b/g,
    (name) => FLAGS.get(name) ?? name,
  );
  const line = escapeControls(named.trim().replace(/\s*\n\s*/g, '; '));
  return `diffqkv: ${line}${code === undefined ? '' : ` (${code})`}\n`;
}
