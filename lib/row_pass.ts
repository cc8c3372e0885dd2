import type { NativeBatchItem } from './addon';
import { aborted, DiffqkvError, invalid, invalidArgument } from './errors';
import { native } from './internal';
import type { Model } from './model';
import type { Scheduler } from './scheduler';
import { checkTokens } from './session';

/** A text, or its tokens. */
export type TextOrTokens = string | readonly number[];

interface RowPass {
  model: Model;
  scheduler: Scheduler;
  tokens: Int32Array;
  rows: Exclude<NativeBatchItem['rows'], undefined>;
  /** Of 'logProbs': for each token. */
  targets?: Int32Array;
  signal?: AbortSignal;
}

/**
 * Appends `tokens` to a session of its own, in chunks between which generations continue. Resolves to
 * what each chunk gives of its tokens, in order.
 */
export async function runRowPass(pass: RowPass): Promise<Float64Array[]> {
  const { model, scheduler, tokens, rows, targets, signal } = pass;
  const chunks: Float64Array[] = [];
  const session = await model.createSession({ maxKvLen: tokens.length });
  try {
    await scheduler.next({
      session: session[native],
      tokens,
      rows,
      targets,
      signal,
      draw: 0,
      continues: false,
      onResult: (result) => result.rows !== undefined && chunks.push(result.rows),
    });
  } catch (error) {
    // The error of the device does not know that the call has begun.
    const isAbort = error instanceof DiffqkvError && error.code === 'ABORT_ERR';
    throw isAbort ? aborted('before the whole text was computed') : error;
  } finally {
    session.dispose();
  }
  return chunks;
}

/** Throws ERR_KV_CACHE_FULL if a text has more tokens than the context of the model. */
export function checkLength({ config }: Model, length: number): void {
  const context = config.maxPositionEmbeddings;
  if (length <= context) return;
  throw new DiffqkvError(
    'ERR_KV_CACHE_FULL',
    `the text has ${length} tokens, and the context of the model has ${context}: pass it in parts`,
  );
}

/**
 * Checks a text or tokens, and copies the latter, so that the caller may change them. The returned
 * function encodes the text, with special tokens as a prompt has them. `name`: of the argument.
 */
export function readText(
  model: Model,
  name: string,
  input: TextOrTokens,
): () => Promise<Int32Array> {
  const { config, tokenizer } = model;
  if (typeof input !== 'string' && !Array.isArray(input)) {
    throw invalid(name, 'a string or an array of tokens', input);
  }
  if (typeof input !== 'string') {
    if (typeof input[0] === 'string') {
      throw invalid(name, 'one text or one array of tokens', input);
    }
    const tokens = checkTokens(input, config.vocabSize, name);
    return async () => tokens;
  }
  if (tokenizer === null) {
    throw invalidArgument(
      `${name}: a text requires a tokenizer, and the model has no tokenizer.json: pass tokens`,
    );
  }
  return async () => {
    model.kvCache; // throws ERR_DISPOSED: encodeAsync would start the tokenizer again
    return checkTokens(await tokenizer.encodeAsync(input), config.vocabSize);
  };
}
