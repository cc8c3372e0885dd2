import type { GeneratedToken, GenerationResult } from './generation';
import type { Model } from './model';
import { StopFilter } from './stop';
import type { TokenStream } from './tokenizer';

/** Turns tokens into text and says when to stop. */
export class Output {
  readonly #endTokens: Set<number>;
  readonly #stream: TokenStream | null;
  readonly #filter: StopFilter;

  constructor({ config, tokenizer }: Model, stops: string[]) {
    this.#endTokens = new Set(config.eosTokenIds);
    if (tokenizer !== null && tokenizer.eosTokenId !== null)
      this.#endTokens.add(tokenizer.eosTokenId);
    this.#stream = tokenizer?.stream({ continued: true }) ?? null;
    this.#filter = new StopFilter(stops);
  }

  /** `last`: nothing comes after this token, so that nothing may be withheld. */
  push(token: number, last: boolean): { text: string; stopped: boolean } {
    const ends = this.#endTokens.has(token);
    let text = ends ? '' : this.#filter.push(this.#stream?.push(token) ?? '');
    if (ends || last) text += this.#filter.push(this.#stream?.flush() ?? '') + this.#filter.flush();
    return { text, stopped: ends || this.#filter.stopped };
  }
}

/** What `draw` needs to know; checked already. */
export interface DrawRequest {
  prompt: Int32Array;
  output: Output;
  /** No more tokens than this; below 1 only the prompt is read. */
  limit: number;
  aborted(): boolean;
  emit(token: GeneratedToken): void;
}

/** How much of the prompt is in the cache. */
export interface PrefillProgress {
  /** Tokens of the prompt that are. */
  doneTokens: number;
  /** All tokens of the prompt. */
  totalTokens: number;
}

/** The loop of a generation: one token after another (`next` appends tokens and draws one), until the output, the limit or the signal ends it. */
export async function draw(
  next: (tokens: Int32Array, draw: number) => Promise<number>,
  request: DrawRequest,
): Promise<GenerationResult> {
  const { prompt, output, limit, aborted, emit } = request;
  const tokens: number[] = [];
  const texts: string[] = [];
  const start = performance.now();
  let first = start; // when the prompt was done
  let end = start;
  const result = (finishReason: GenerationResult['finishReason']): GenerationResult => {
    const decodeMs = end - first;
    return {
      text: texts.join(''),
      tokens,
      finishReason,
      usage: { promptTokens: prompt.length, completionTokens: tokens.length },
      timings: {
        prefillMs: first - start,
        decodeMs,
        tokensPerSecond: decodeMs > 0 ? ((tokens.length - 1) / decodeMs) * 1000 : 0,
      },
    };
  };

  let token: number;
  try {
    token = await next(prompt, 0);
  } catch (error) {
    if ((error as { code?: string }).code !== 'ABORT_ERR') throw error;
    first = end = performance.now();
    return result('abort');
  }
  first = end = performance.now();
  while (tokens.length < limit) {
    const abort = aborted();
    tokens.push(token);
    const { text, stopped } = output.push(token, abort || tokens.length === limit);
    texts.push(text);
    emit({ token, text });
    if (stopped || abort) return result(stopped ? 'stop' : 'abort');
    if (tokens.length === limit) break;
    token = await next(Int32Array.of(token), tokens.length);
    end = performance.now();
  }
  return result('length');
}
