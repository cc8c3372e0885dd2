import { throwIfAborted } from './abort';
import type { Model } from './model';
import { readOptions } from './options';
import { checkLength, readText, runRowPass, type TextOrTokens } from './row_pass';
import type { Scheduler } from './scheduler';

/** Options of {@link Model.score}. */
export interface ScoreOptions {
  /** Rejects with ABORT_ERR within one chunk of the text. */
  signal?: AbortSignal;
}

/** The outcome of {@link Model.score}. */
export interface Score {
  /** The tokens of the text, with special tokens as a prompt has them. */
  tokens: number[];
  /**
   * The log probability of every token after the first, given those before it: element i is of
   * `tokens[i + 1]`. The perplexity of the text is exp(-mean).
   */
  logprobs: Float32Array;
}

/** Implements {@link Model.score}. */
export async function score(
  model: Model,
  scheduler: Scheduler,
  text: TextOrTokens,
  options: ScoreOptions = {},
): Promise<Score> {
  const { signal } = readOptions('options', options, { signal: true });
  throwIfAborted(signal);
  const encode = readText(model, 'text', text);
  await scheduler.gate.wait();
  const tokens = await encode();
  checkLength(model, tokens.length);
  const logprobs = new Float32Array(tokens.length - 1);
  // The last token has no target. A text of one token needs no pass, but a model that is usable.
  const [before, targets] = [tokens.subarray(0, -1), tokens.subarray(1)];
  if (targets.length === 0) (await model.createSession({ maxKvLen: 1 })).dispose();
  else {
    let length = 0;
    const pass = { model, scheduler, tokens: before, targets, signal };
    for (const chunk of await runRowPass({ ...pass, rows: 'logProbs' })) {
      logprobs.set(chunk, length);
      length += chunk.length;
    }
  }
  return { tokens: [...tokens], logprobs };
}
