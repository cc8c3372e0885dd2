import { throwIfAborted } from './abort';
import { checkBoolean, invalid } from './errors';
import type { Model } from './model';
import { readOptions } from './options';
import { checkLength, readText, runRowPass, type TextOrTokens } from './row_pass';
import type { Scheduler } from './scheduler';

/** Options of {@link Model.embed}. */
export interface EmbedOptions {
  /**
   * Which hidden states make the embedding, after the final norm: 'last', that of the last token, or
   * 'mean', the mean of all. Use the one that the model was trained with. Default 'last'.
   */
  pooling?: 'last' | 'mean';
  /** Divides an embedding by its length, so that a dot product is the cosine. Default true. */
  normalize?: boolean;
  /** Rejects with ABORT_ERR within one chunk of a text. */
  signal?: AbortSignal;
}

/** Implements {@link Model.embed}. */
export async function embed(
  model: Model,
  scheduler: Scheduler,
  texts: readonly TextOrTokens[],
  options: EmbedOptions = {},
): Promise<Float32Array[]> {
  const names = { pooling: true, normalize: true, signal: true } as const;
  const { pooling = 'last', normalize = true, signal } = readOptions('options', options, names);
  if (pooling !== 'last' && pooling !== 'mean') {
    throw invalid('pooling', "'last' or 'mean'", pooling);
  }
  checkBoolean('normalize', normalize);
  throwIfAborted(signal);
  if (!Array.isArray(texts)) throw invalid('texts', 'an array of texts or of token arrays', texts);
  const encoders = Array.from(texts, (text, i) => readText(model, `texts[${i}]`, text));
  model.kvCache; // throws ERR_DISPOSED, also without texts
  await scheduler.gate.wait();
  const encoded = await Promise.all(encoders.map((encode) => encode()));
  for (const { length } of encoded) checkLength(model, length);
  const rows = pooling === 'last' ? 'lastHidden' : 'allHidden';
  const embeddings: Float32Array[] = [];
  // One after another: a step has one chunk of one text, and so the cache of one is enough.
  for (const tokens of encoded) {
    const chunks = await runRowPass({ model, scheduler, tokens, rows, signal });
    embeddings.push(pooled(chunks, rows === 'lastHidden' ? 1 : tokens.length, normalize));
  }
  return embeddings;
}

/** The sum of the chunks divided by `count` or, if `normalize` is set, by its length. */
function pooled(chunks: readonly Float64Array[], count: number, normalize: boolean): Float32Array {
  const sum = new Float64Array((chunks[0] as Float64Array).length);
  for (const chunk of chunks)
    for (let i = 0; i < sum.length; i++) sum[i] = at(sum, i) + at(chunk, i);
  const length = Math.sqrt(sum.reduce((squares, x) => squares + x * x, 0));
  const divisor = normalize && length > 0 ? length : count;
  return Float32Array.from(sum, (x) => x / divisor);
}

function at(values: Float64Array, i: number): number {
  return values[i] as number;
}
