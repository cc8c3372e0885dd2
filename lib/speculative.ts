import type { NativeSampling, NativeSession } from './addon';
import { DraftModel } from './draft_model';
import { awaitNative, checkInteger, invalid, invalidArgument } from './errors';
import { scheduler as schedulerOf } from './internal';
import type { LogitBiases } from './logit_bias';
import type { LogprobRecorder } from './logprobs';
import type { Model } from './model';
import { type OptionNames, readOptions } from './options';
import { PromptLookup } from './prompt_lookup';
import { MAX_ROWS, type Scheduler } from './scheduler';

/**
 * How the next tokens are proposed. The model verifies the proposals together, in one pass over its
 * weights. The tokens of the generation are the same as without. Default: prompt lookup.
 */
export interface SpeculativeOptions {
  /**
   * Prompt lookup: the longest sequence of last tokens, up to this many, that occurred before in the
   * session, the prompt or the output proposes what followed it there. An integer from 1 to 16.
   * Default 3.
   */
  ngram?: number;
  /**
   * A smaller model, which proposes what it generates itself. Its vocabSize must be equal, and its
   * tokens must have the same meaning. It has a cache of its own during the generation. Not allowed
   * with `ngram`.
   */
  draft?: Model;
  /**
   * The most tokens to propose for one step: an integer from 1 to 15. Fewer are proposed after
   * proposals that were wrong. Default 8.
   */
  maxTokens?: number;
}

/** The names of {@link SpeculativeOptions}. */
export const SPECULATIVE_OPTIONS: OptionNames<SpeculativeOptions> = {
  ngram: true,
  draft: true,
  maxTokens: true,
};

/** What speculative decoding did in a generation. */
export interface SpeculativeCounts {
  /** Tokens that were proposed. */
  proposedTokens: number;
  /** Tokens among them that the model drew too. */
  acceptedTokens: number;
  /** Steps of the model after the prompt: (completionTokens - 1) / steps is the gain. */
  steps: number;
}

/** Proposes tokens. What it proposes affects the time that a generation takes, and nothing else. */
export interface Proposer {
  /**
   * Resolves to at most `count` tokens that may follow `tokens`: those of the session, the prompt and
   * the output. `draw`: the number of tokens that were drawn.
   */
  propose(tokens: readonly number[], count: number, draw: number): Promise<number[]> | number[];
  dispose(): void;
}

/** What a proposer and its generation know of each other. */
export interface ProposerContext {
  sampling: NativeSampling;
  biases: LogitBiases | undefined;
  /** The most tokens that the sequence can have. */
  maxLength: number;
  /** Aborted if the generation is stopped. */
  signal: AbortSignal;
  /** Tokens that end the generation, so that none follows them. */
  endTokens: ReadonlySet<number | null>;
}

/** Checked options. */
export interface SpeculativeSettings {
  maxTokens: number;
  createProposer(context: ProposerContext): Promise<Proposer>;
}

const MAX_NGRAM = 16;

/**
 * Checks the `speculative` option of a generation of `model`. Throws ERR_INVALID_ARGUMENT.
 * Undefined if the option is.
 */
export function resolveSpeculative(
  model: Model,
  options: SpeculativeOptions | undefined,
): SpeculativeSettings | undefined {
  if (options === undefined) return undefined;
  const given = readOptions('speculative', options, SPECULATIVE_OPTIONS);
  const { ngram, draft, maxTokens = 8 } = given;
  checkInteger('speculative.maxTokens', maxTokens, 1, MAX_ROWS - 1);
  if (draft === undefined) {
    const length = ngram ?? 3;
    checkInteger('speculative.ngram', length, 1, MAX_NGRAM);
    return { maxTokens, createProposer: async () => new PromptLookup(length) };
  }
  if (ngram !== undefined) {
    throw invalidArgument('speculative has both ngram and draft: omit one of them');
  }
  const scheduler = draftScheduler(draft);
  if (draft.config.vocabSize !== model.config.vocabSize) {
    throw invalidArgument(
      `speculative.draft has a vocabSize of ${draft.config.vocabSize}, and the model has ` +
        `${model.config.vocabSize}: use a draft model with the same tokenizer`,
    );
  }
  return {
    maxTokens,
    createProposer: (context) => DraftModel.create(draft, scheduler, context),
  };
}

function draftScheduler(draft: Model): Scheduler {
  try {
    const scheduler = draft[schedulerOf]; // throws unless `draft` is a model
    if (scheduler !== undefined) return scheduler;
  } catch {}
  throw invalid('speculative.draft', 'a model', draft);
}

/** What the tokens of one generation come from. */
export interface SpeculationContext extends ProposerContext {
  settings: SpeculativeSettings;
  scheduler: Scheduler;
  session: NativeSession;
  logprobs: LogprobRecorder;
  /** Maximum number of tokens to draw. */
  limit: number;
  /** Appends tokens to the session and draws the next one, without proposals. */
  next(tokens: Int32Array, draw: number): Promise<number>;
}

/**
 * Draws the tokens of one generation. Tokens that a step has drawn beyond the first wait until they
 * are asked for.
 */
export class Speculation {
  readonly counts: SpeculativeCounts = { proposedTokens: 0, acceptedTokens: 0, steps: 0 };
  readonly #context: SpeculationContext;
  readonly #proposer: Proposer;
  readonly #size: ProposalSize;
  /** The session, the prompt and the output, as far as it was asked for. */
  readonly #tokens: number[];
  /** Drawn, and not asked for. All but the last are in the session, after those of #tokens. */
  #queue: number[] = [];

  private constructor(context: SpeculationContext, proposer: Proposer, tokens: Int32Array) {
    this.#context = context;
    this.#proposer = proposer;
    this.#size = new ProposalSize(context.settings.maxTokens);
    this.#tokens = Array.from(tokens);
  }

  /** The tokens of the session are its start. */
  static async create(context: SpeculationContext): Promise<Speculation> {
    // An aborted generation draws nothing, and may not use the session: it may not be in its turn.
    if (context.signal.aborted)
      return new Speculation(context, new PromptLookup(1), new Int32Array());
    const tokens = await awaitNative(() => context.session.tokens());
    return new Speculation(context, await context.settings.createProposer(context), tokens);
  }

  /** Like the `next` of the context. `tokens`: the prompt, then the token that the last call gave. */
  async next(tokens: Int32Array, draw: number): Promise<number> {
    if (draw === 0) for (const token of tokens) this.#tokens.push(token);
    if (this.#queue.length === 0) this.#queue = await this.#step(tokens, draw);
    const token = this.#queue.shift() as number;
    this.#tokens.push(token);
    return token;
  }

  /**
   * Removes the tokens after those that were asked for from the session. Resolves to whether the
   * session has the last of these, which it has not if its step drew no more.
   */
  async rewind(): Promise<boolean> {
    const excess = this.#queue.length - 1;
    if (excess < 0) return false;
    const { session } = this.#context;
    if (excess > 0) await awaitNative(() => session.truncate({ kvLen: session.kvLen - excess }));
    return true;
  }

  dispose(): void {
    this.#proposer.dispose();
  }

  async #step(tokens: Int32Array, draw: number): Promise<number[]> {
    const { scheduler, session, sampling, biases, logprobs, next } = this.#context;
    if (draw === 0) return [await next(tokens, draw)];
    const proposals = await this.#propose(draw);
    this.counts.steps++;
    if (proposals.length === 0) return [await next(tokens, draw)];
    const drawn = await scheduler.verify({
      session,
      tokens: Int32Array.of(...tokens, ...proposals),
      sampling,
      rowBiases: biases?.after(proposals),
      logprobs: logprobs.count,
      onResult: logprobs.record,
      draw,
      continues: false,
    });
    for (const token of drawn) biases?.accept(token);
    const accepted = drawn.length - 1;
    this.counts.proposedTokens += proposals.length;
    this.counts.acceptedTokens += accepted;
    this.#size.record(proposals.length, accepted);
    return drawn;
  }

  async #propose(draw: number): Promise<number[]> {
    const { scheduler, limit, signal, endTokens } = this.#context;
    if (signal.aborted) return [];
    // More rows than one pass has would be another pass over the weights.
    const rows = Math.min(limit - draw, Math.floor(MAX_ROWS / scheduler.numGenerations));
    const count = Math.min(this.#size.next(), rows - 1);
    if (count < 1) return [];
    const proposals = await this.#proposer.propose(this.#tokens, count, draw);
    const end = proposals.findIndex((token) => endTokens.has(token));
    return end < 0 ? proposals : proposals.slice(0, end);
  }
}

const FIRST_SIZE = 4;
const MAX_PAUSE = 32;

/**
 * How many tokens to propose: more after proposals that were right, fewer after others, and none for
 * a growing number of steps while all are wrong.
 */
export class ProposalSize {
  readonly #max: number;
  #size: number;
  /** Steps to pause after the next failure, and those left of this pause. */
  #nextPause = 0;
  #pause = 0;

  constructor(max: number) {
    this.#max = max;
    this.#size = Math.min(FIRST_SIZE, max);
  }

  /** The number of tokens to propose for the next step. */
  next(): number {
    if (this.#pause === 0) return this.#size;
    this.#pause--;
    return 0;
  }

  record(proposed: number, accepted: number): void {
    if (accepted === 0) {
      this.#pause = this.#nextPause;
      this.#nextPause = Math.min(MAX_PAUSE, Math.max(1, 2 * this.#nextPause));
      this.#size = Math.max(1, Math.floor(proposed / 2));
      return;
    }
    this.#nextPause = 0;
    this.#size = Math.min(this.#max, accepted === proposed ? 2 * proposed : accepted + 1);
  }
}
