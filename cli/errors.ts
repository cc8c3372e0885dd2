/** An error of the command line itself. */
export class CliError extends Error {
  readonly code: string;

  constructor(code: string, message: string) {
    super(message);
    this.code = code;
  }
}

/** `diffqkv: message (CODE)`, always one line. */
export function errorLine(error: unknown): string {
  const { message = String(error), code } = (error ?? {}) as { message?: string; code?: string };
  return `diffqkv: ${message.trim().replace(/\s*\n\s*/g, '; ')}${code === undefined ? '' : ` (${code})`}\n`;
}
