import { readFile } from 'node:fs/promises';
import { DiffqkvError } from './errors';

export type Json = Record<string, unknown>;

const MAX_TOKENS = 2 ** 24; // far past any vocabulary; an absurd id would make the tables absurdly long

/** The token strings by id: `model.vocab` ({ piece: id }, or Unigram's [[piece, score]]) and `added_tokens`. */
export function readPieces(json: Json): (string | undefined)[] {
  const vocab = (json.model as Json | null | undefined)?.vocab;
  if (typeof vocab !== 'object' || vocab === null) throw new TypeError('model.vocab is missing');
  const pieces: (string | undefined)[] = [];
  const put = (piece: unknown, id: unknown) => {
    if (typeof piece !== 'string')
      throw new TypeError(`the piece of token ${String(id)} is not a string`);
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= MAX_TOKENS) {
      throw new RangeError(
        `token ${JSON.stringify(piece)} has the id ${String(id)}, not an integer from 0 to ${MAX_TOKENS - 1}`,
      );
    }
    pieces[id] = piece;
  };
  const entries = Array.isArray(vocab)
    ? vocab.map((entry, id) => [entry?.[0], id])
    : Object.entries(vocab);
  for (const [piece, id] of entries) put(piece, id);
  for (const token of json.added_tokens as Json[]) put(token?.content, token?.id);
  return pieces;
}

/** A token of tokenizer_config.json is given by its text, or by an object that has it. */
export function tokenText(token: unknown): string | undefined {
  const text = typeof token === 'object' && token !== null ? (token as Json).content : token;
  return typeof text === 'string' ? text : undefined;
}

/** Null where there is no such file; ERR_INVALID_CHECKPOINT where it can't be read. */
export async function readText(file: string): Promise<string | null> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `${file} cannot be read: ${(error as Error).message}`,
    );
  }
}

/** Null where there is no such file; ERR_INVALID_CHECKPOINT where it can't be read or holds no JSON object. */
export async function readJson(file: string): Promise<Json | null> {
  const text = await readText(file);
  if (text === null) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `${file} is not JSON: ${(error as Error).message}`,
    );
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  throw new DiffqkvError('ERR_INVALID_CHECKPOINT', `${file} must hold a JSON object`);
}
