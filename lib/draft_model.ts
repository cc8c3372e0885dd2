import { native } from './internal';
import type { Model } from './model';
import { type BatchRequest, MAX_ROWS, type Scheduler } from './scheduler';
import type { Session } from './session';
import type { Proposer, ProposerContext } from './speculative';

/**
 * Proposes what a draft model generates. It draws with the seed and the draw counters of the
 * generation: the same random numbers make it likely that both models draw the same token.
 */
export class DraftModel implements Proposer {
  readonly #session: Session;
  readonly #scheduler: Scheduler;
  readonly #context: ProposerContext;
  /** Length of the sequence in the last call. All of it is in the cache, and then #proposed. */
  #length = 0;
  #proposed: number[] = [];

  private constructor(session: Session, scheduler: Scheduler, context: ProposerContext) {
    this.#session = session;
    this.#scheduler = scheduler;
    this.#context = context;
  }

  static async create(
    model: Model,
    scheduler: Scheduler,
    context: ProposerContext,
  ): Promise<DraftModel> {
    const maxKvLen = Math.min(model.config.maxPositionEmbeddings, context.maxLength);
    return new DraftModel(await model.createSession({ maxKvLen }), scheduler, context);
  }

  /** Proposes nothing if the sequence does not fit into the context of the draft model. */
  async propose(tokens: readonly number[], count: number, draw: number): Promise<number[]> {
    const { signal, endTokens } = this.#context;
    // The last proposal is not appended.
    const max = Math.min(count, this.#session.maxKvLen - tokens.length + 1);
    const proposals: number[] = [];
    if (max < 1) return proposals;
    try {
      const missing = await this.#keepCommon(tokens);
      let token = await this.#append(missing, draw, max > 1);
      for (;;) {
        proposals.push(token);
        const isDone = proposals.length === max || endTokens.has(token);
        if (isDone || signal.aborted) return proposals;
        const appended = token;
        const continues = proposals.length + 1 < max;
        token = await this.#next([token], draw + proposals.length, continues);
        this.#proposed.push(appended);
      }
    } catch (error) {
      if ((error as { code?: string }).code !== 'ABORT_ERR') throw error;
      return [];
    }
  }

  dispose(): void {
    this.#session.dispose();
  }

  /** Truncates the cache to tokens of the sequence. Resolves to those that it lacks, at least one. */
  async #keepCommon(tokens: readonly number[]): Promise<number[]> {
    const cached = this.#length + this.#proposed.length;
    let common = this.#length;
    while (common < cached && this.#proposed[common - this.#length] === tokens[common]) common++;
    common = Math.min(common, tokens.length - 1);
    if (common < cached) await this.#session.truncate(common);
    this.#length = common;
    this.#proposed = [];
    return tokens.slice(common);
  }

  /**
   * Appends tokens of the sequence, and resolves to the token that follows them. `continues`: that
   * token will be appended too.
   */
  async #append(tokens: number[], draw: number, continues: boolean): Promise<number> {
    let rest = tokens;
    let token = -1;
    while (rest.length > 0) {
      // Few tokens are appended as proposals would be, because these steps run in batches.
      const isPrompt = rest.length > Math.min(MAX_ROWS, draw);
      const drawn =
        isPrompt || rest.length === 1
          ? [await this.#next(rest, draw, continues)]
          : await this.#verify(rest, draw - rest.length + 1, continues);
      token = drawn.at(-1) as number;
      const count = isPrompt ? rest.length : drawn.length;
      this.#length += count;
      rest = rest.slice(count);
    }
    return token;
  }

  #next(tokens: number[], draw: number, continues: boolean): Promise<number> {
    const request = this.#request(tokens, draw, continues);
    const { signal, biases } = this.#context;
    const biased = { ...request, biases: biases?.current };
    return this.#scheduler.next(tokens.length > 1 ? { ...biased, signal } : biased);
  }

  #verify(tokens: number[], draw: number, continues: boolean): Promise<number[]> {
    const { biases } = this.#context;
    const rowBiases = biases && tokens.map(() => biases.current);
    return this.#scheduler.verify({ ...this.#request(tokens, draw, continues), rowBiases });
  }

  #request(tokens: number[], draw: number, continues: boolean): BatchRequest {
    const { sampling } = this.#context;
    const session = this.#session[native];
    return { session, tokens: Int32Array.from(tokens), sampling, draw, continues };
  }
}
