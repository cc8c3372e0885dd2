import type { ChatMessage } from './chat';
import { draw, Output, type PrefillProgress } from './draw';
import { checkObject, DiffqkvError, invalid } from './errors';
import { type GeneratedToken, Generation, type GenerationResult } from './generation';
import { type Model, scheduler } from './model';
import { resolveSampling, type SamplingOptions } from './sampling';
import { checkTokens, isSession, nativeSession, type Session } from './session';
import { resolveStop } from './stop';

/** How {@link Model.generate} goes on, where it stops, and how it draws. */
export interface GenerateOptions extends SamplingOptions {
  /** At most this many new tokens: an integer of at least 1, or Infinity for as many as the context holds. Default 256. */
  maxTokens?: number;
  /** Text at which to stop; it is not part of the output. Needs a tokenizer. */
  stop?: string | readonly string[];
  /** Ends the generation within one chunk of the prompt or one token: `result` then has finishReason 'abort'. */
  signal?: AbortSignal;
  /**
   * Go on with this session: the prompt is appended to what it holds, without another begin-of-text token. It is not
   * disposed, and serves one generation at a time. Afterwards it holds the prompt and all of `result.tokens`; where
   * aborted within the prompt, what it held before.
   */
  session?: Session;
  /**
   * Hears of each chunk of the prompt that is done. What it throws ends the generation, as its error, and the session
   * holds what it held before.
   */
  onPrefillProgress?: (progress: PrefillProgress) => void;
}

/** Text, tokens, or a conversation that the checkpoint's chat template writes out. */
export type Prompt = string | readonly number[] | readonly ChatMessage[];

const DEFAULT_MAX_TOKENS = 256;
const busySessions = new WeakSet<Session>();

/**
 * Model.generate: draws tokens one after another, together with the other generations of the model. Never throws by itself: what is wrong with the arguments comes as the
 * error of the generation. Whenever the signal fires, be it before the call, the result has finishReason 'abort'.
 */
export function generate(model: Model, prompt: Prompt, options: GenerateOptions = {}): Generation {
  return new Generation((emit, left) => produce(model, prompt, options, emit, left));
}

type Emit = (token: GeneratedToken) => void;

async function produce(
  model: Model,
  prompt: Prompt,
  options: GenerateOptions,
  emit: Emit,
  left: AbortSignal,
): Promise<GenerationResult> {
  checkObject('options', options);
  const { maxTokens = DEFAULT_MAX_TOKENS, session, signal, onPrefillProgress } = options;
  if (
    maxTokens !== Number.POSITIVE_INFINITY &&
    !(Number.isSafeInteger(maxTokens) && maxTokens >= 1)
  ) {
    throw invalid('maxTokens', 'an integer of at least 1, or Infinity', maxTokens);
  }
  if (session !== undefined && !isSession(session)) throw invalid('session', 'a session', session);
  if (onPrefillProgress !== undefined && typeof onPrefillProgress !== 'function') {
    throw invalid('onPrefillProgress', 'a function', onPrefillProgress);
  }
  const stops = resolveStop(options.stop);
  if (stops.length > 0 && model.tokenizer === null) {
    throw refuse('stop needs text to look in, and the model has no tokenizer (no tokenizer.json)');
  }
  const sampling = resolveSampling(options);
  const tokens = encodePrompt(model, prompt, session !== undefined && session.kvLen > 0);
  const output = new Output(model, stops);
  const signals = signal === undefined ? [left] : [left, signal];
  const aborted = () => signals.some((one) => one.aborted);

  return withSession(model, session, tokens.length + maxTokens, async (used) => {
    const native = nativeSession(used);
    const room = used.maxKvLen - used.kvLen - tokens.length;
    // A session that goes on must have room for the last token too; in our own that one is never looked at again.
    const limit = Math.min(maxTokens, session === undefined ? room + 1 : room);
    const onProgress =
      onPrefillProgress &&
      ((doneTokens: number, totalTokens: number) => onPrefillProgress({ doneTokens, totalTokens }));
    const next = (some: Int32Array, count: number): Promise<number> => {
      const turn = { session: native, tokens: some, sampling, draw: count };
      // A token is soon done and not cancelled half way, so that the cache holds each that was given out but the last.
      return scheduler(model).next(count === 0 ? { ...turn, signals, onProgress } : turn);
    };
    const result = await draw(next, { prompt: tokens, output, limit, aborted, emit });
    const last = result.tokens.at(-1);
    if (session !== undefined && last !== undefined) {
      await scheduler(model).next({ session: native, tokens: Int32Array.of(last), draw: 0 });
    }
    return result;
  });
}

/** Runs `work` with the given session, or with one of its own that has room for `length` tokens. */
async function withSession<T>(
  model: Model,
  session: Session | undefined,
  length: number,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  if (session === undefined) {
    const own = await model.createSession({
      maxKvLen: Math.min(model.config.maxPositionEmbeddings, length),
    });
    try {
      return await work(own);
    } finally {
      own.dispose();
    }
  }
  if (session.model !== model) throw refuse('the session belongs to another model');
  if (busySessions.has(session)) {
    throw refuse(
      'the session serves another generation: await its result first, or fork the session',
    );
  }
  busySessions.add(session);
  try {
    return await work(session);
  } finally {
    busySessions.delete(session);
  }
}

function encodePrompt(
  { config, tokenizer }: Model,
  prompt: Prompt,
  continues: boolean,
): Int32Array {
  if (typeof prompt !== 'string' && !Array.isArray(prompt)) {
    throw invalid('prompt', 'a string, an array of tokens or of messages', prompt);
  }
  if (typeof prompt !== 'string' && (prompt.length === 0 || typeof prompt[0] !== 'object')) {
    return checkTokens(prompt, config.vocabSize);
  }
  if (tokenizer === null)
    throw refuse('the model has no tokenizer (no tokenizer.json): give the prompt as tokens');
  if (typeof prompt === 'string') {
    return checkTokens(
      tokenizer.encode(prompt, { addSpecialTokens: !continues }),
      config.vocabSize,
    );
  }
  // The template writes the special tokens itself, begin-of-text among them, which a session that goes on has already.
  const text = tokenizer.applyChatTemplate(prompt as readonly ChatMessage[]);
  const tokens = tokenizer.encode(text, { addSpecialTokens: false });
  return checkTokens(
    continues && tokens[0] === tokenizer.bosTokenId ? tokens.slice(1) : tokens,
    config.vocabSize,
  );
}

function refuse(message: string): DiffqkvError {
  return new DiffqkvError('ERR_INVALID_ARGUMENT', message);
}
