import { isAborted, onAbort } from './abort';
import type { ChatMessage } from './chat';
import { awaitNative, checkCallback, DiffqkvError, invalid, invalidArgument } from './errors';
import { type GeneratedToken, Generation, type GenerationResult } from './generation';
import type { Constraint } from './grammar/compiler';
import { grammarSource, type ResponseFormat } from './grammar/format';
import { callOrder, grammars, native, toolTemplate } from './internal';
import { LogitBiases } from './logit_bias';
import { LogprobRecorder } from './logprobs';
import type { Model } from './model';
import { type OptionNames, readOptions } from './options';
import { resolveSampling, type SamplingOptions } from './sampling';
import type { Scheduler } from './scheduler';
import { checkTokens, Session } from './session';
import { resolveSpeculative, Speculation, type SpeculativeOptions } from './speculative';
import { resolveStop, StopFilter, StopTokens } from './stop';
import {
  ENCODE_CHAT_OPTIONS,
  type EncodeChatOptions,
  type Tokenizer,
  type TokenStream,
} from './tokenizer';
import {
  TOOL_CALL_TOKENS,
  type ToolCall,
  type ToolCallDelta,
  type ToolCallParser,
} from './tool_calls';
import { resolveTools, type ToolChoice } from './tools';

/** Options of {@link Model.generate}: how tokens are drawn and when to stop. */
export interface GenerateOptions extends SamplingOptions {
  /**
   * Maximum number of new tokens: an integer of at least 1, or Infinity for as many as the context
   * has room for. Default 256.
   */
  maxTokens?: number;
  /** How a prompt of messages becomes tokens. Not allowed with another prompt. */
  chat?: EncodeChatOptions;
  /**
   * Stop at this text, which is not part of the output, or at the special token of this text. If
   * one token completes several of them, the one that begins first counts. At most 65,536 UTF-16
   * units together. Requires a tokenizer.
   */
  stop?: string | readonly string[];
  /**
   * Adds the log probability of each token, and those of so many of the most likely tokens: an
   * integer from 0 to 20. They are of the model's own distribution, before penalties, biases, masks
   * and the temperature. Default: none.
   */
  logprobs?: number;
  /**
   * What the text must be. Only tokens that keep it possible are drawn, and the generation ends with
   * finishReason 'stop' when the text is complete. If `maxTokens`, `stop` or `signal` ends it
   * before, the text is unfinished. Default: any text. Requires a tokenizer.
   */
  responseFormat?: ResponseFormat;
  /**
   * Descriptions of the functions that the model may call: `{ type: 'function', function: { name,
   * description, parameters } }`, or only the inner object. `parameters` is a JSON schema. A prompt
   * of messages shows them to the model. Another prompt must have them already. Calls are taken out
   * of the text in the format of the checkpoint's chat template: Hermes and Qwen, Llama 3, Mistral
   * or Gemma. With another template they stay text. Default: `chat.tools`.
   */
  tools?: readonly object[];
  /**
   * Whether the model calls functions of `tools`. Default 'auto'. 'required' and a name make the
   * whole text an array of calls, so they cannot be combined with `responseFormat`.
   */
  toolChoice?: ToolChoice;
  /**
   * Stops the generation within one chunk of the prompt or one token. `result` then has
   * finishReason 'abort'.
   */
  signal?: AbortSignal;
  /**
   * Continue this session. A prompt of text or tokens is appended to its cache, without a
   * begin-of-text token if the cache is not empty. A prompt of messages is the whole conversation:
   * the tokens in the cache that it begins with are kept, those after the first difference are
   * dropped, and only the rest of the prompt is computed. The generation starts after earlier calls
   * on the session, and later calls run after its end. The session is not disposed of. Afterwards
   * its cache also has the prompt and all of `result.tokens`. If the generation failed or was
   * aborted within the prompt, nothing of it is appended.
   */
  session?: Session;
  /**
   * Called after each chunk of the prompt. The generation does not wait for a promise that it
   * returns. If it throws, the generation fails with that error and nothing is appended to
   * `session`.
   */
  onPrefillProgress?: (progress: PrefillProgress) => void;
  /**
   * Speculative decoding: several tokens are proposed and verified in one step. The tokens are the
   * same as without. Default: off.
   */
  speculative?: SpeculativeOptions;
}

/** The names of {@link GenerateOptions}. */
export const GENERATE_OPTIONS: OptionNames<GenerateOptions> = {
  maxTokens: true,
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  seed: true,
  chat: true,
  stop: true,
  signal: true,
  session: true,
  onPrefillProgress: true,
  speculative: true,
  logprobs: true,
  logitBias: true,
  frequencyPenalty: true,
  presencePenalty: true,
  responseFormat: true,
  tools: true,
  toolChoice: true,
};

/** How much of the prompt is in the cache. */
export interface PrefillProgress {
  /** Tokens of the prompt that are in the cache. */
  doneTokens: number;
  /** All tokens of the prompt. */
  totalTokens: number;
}

/**
 * Text, tokens, or a conversation to format with the checkpoint's chat template. The names of
 * control tokens in text become these tokens. In a conversation they stay text.
 */
export type Prompt = string | readonly number[] | readonly ChatMessage[];

/**
 * Implements {@link Model.generate}: generates one token after another, batched by `scheduler` with
 * the other generations of the model. Never throws: an invalid argument is the error of the
 * generation, and a signal that is aborted already gives finishReason 'abort'.
 */
export function generate(
  model: Model,
  scheduler: Scheduler,
  prompt: Prompt,
  options: GenerateOptions = {},
): Generation {
  return new Generation(async (emit, stop) =>
    generateTokens({ model, scheduler, prompt, isWhole: isChat(prompt), options, emit, stop }),
  );
}

/** A generation, as the producer of a {@link Generation} runs it. */
export interface GenerateRequest {
  model: Model;
  scheduler: Scheduler;
  prompt: Prompt;
  /** The prompt is all that the session is to have: the session keeps what it begins with. */
  isWhole: boolean;
  options: GenerateOptions;
  emit(token: GeneratedToken): void;
  stop: AbortController;
}

/** Generates tokens and emits each. Rejects like {@link Model.generate} fails. */
export async function generateTokens(request: GenerateRequest): Promise<GenerationResult> {
  const { model, scheduler, prompt, isWhole, emit, stop } = request;
  const options = readOptions('options', request.options, GENERATE_OPTIONS);
  const { session, signal, onPrefillProgress } = options;
  const maxTokens = checkMaxTokens(options.maxTokens);
  if (session !== undefined && !(session instanceof Session)) {
    throw invalid('session', 'a session', session);
  }
  checkCallback('onPrefillProgress', onPrefillProgress);
  const stops = resolveStop(options.stop);
  if (stops.length > 0 && model.tokenizer === null) {
    throw invalidArgument(
      'stop requires a tokenizer, and the model has no tokenizer.json: omit stop',
    );
  }
  const { tools = options.chat?.tools, toolChoice, responseFormat } = options;
  const template = model.tokenizer?.[toolTemplate] ?? null;
  const toolUse = resolveTools({ tools, toolChoice, responseFormat, template });
  const constrain = readResponseFormat(model, toolUse.format ?? responseFormat);
  const sampling = resolveSampling(options);
  const biases = LogitBiases.create(options, model.config.vocabSize);
  const logprobs = new LogprobRecorder(model, options.logprobs);
  const settings = resolveSpeculative(model, options.speculative);
  if (settings !== undefined && constrain !== undefined) {
    throw invalidArgument(
      'speculative cannot be combined with responseFormat or a toolChoice that requires a call: ' +
        'omit speculative',
    );
  }
  const encode = readPrompt(model, prompt, options);
  if (isAborted(signal)) stop.abort();
  const stopListening = onAbort(signal, () => stop.abort());
  const work = async () => {
    await scheduler.gate.wait();
    const tokens = await encode(!isWhole && session !== undefined && session.kvLen > 0);
    const output = new Output(model, stops, await StopFilter.create(stops), toolUse.parser);
    return withSession(model, session, tokens.length + maxTokens, async (used) => {
      const start = isWhole ? 0 : used.kvLen;
      const room = used.maxKvLen - start - tokens.length;
      if (room < 0 && !stop.signal.aborted) throw promptTooLong(used, tokens.length, start);
      // The last token is appended to a session of the caller, so it needs room there. In a session
      // of this generation it is not.
      const limit = Math.min(maxTokens, session === undefined ? room + 1 : room);
      const cachedTokens =
        isWhole && session !== undefined ? await keepPrefix(session, tokens, stop) : 0;
      const onProgress =
        onPrefillProgress &&
        ((doneTokens: number, totalTokens: number) =>
          onPrefillProgress({
            doneTokens: cachedTokens + doneTokens,
            totalTokens: cachedTokens + totalTokens,
          }));
      let constraint: Constraint | undefined;
      const next = async (appended: Int32Array, draw: number): Promise<number> => {
        constraint ??= await constrain?.(stop.signal);
        // A step that depends on the token that this one draws cannot be computed ahead.
        const continues = draw + 1 < limit && biases === undefined && constraint === undefined;
        const inputs = { allowed: constraint?.allowed, biases: biases?.current };
        const outputs = { logprobs: logprobs.count, onResult: logprobs.record };
        const step = { tokens: appended, sampling, ...inputs, draw, continues, ...outputs };
        const item = { session: used[native], ...step };
        // Only the prompt is canceled midway. A single token is soon done, and completing it keeps
        // the cache in step with the tokens that were emitted.
        const withSignal = draw === 0 ? { ...item, signal: stop.signal, onProgress } : item;
        const token = await scheduler.next(withSignal);
        biases?.accept(token);
        await constraint?.accept(token);
        return token;
      };
      const isStopped = () => stop.signal.aborted;
      const maxLength = start + tokens.length + Math.max(limit, 0);
      const { signal } = stop;
      const { endTokens } = output;
      const context = { scheduler, session: used[native], sampling, biases, logprobs, limit, next };
      const speculation =
        settings &&
        (await Speculation.create({ ...context, settings, maxLength, signal, endTokens }));
      try {
        const draw: typeof next = (...step) => speculation?.next(...step) ?? next(...step);
        const isComplete = () => constraint?.isFinished ?? false;
        const drawing = { next: draw, isComplete, logprobs, output, limit, isStopped, emit };
        const result = await drawTokens({ prompt: tokens, cachedTokens, ...drawing });
        const last = result.tokens.at(-1);
        if (session !== undefined && last !== undefined && !(await speculation?.rewind())) {
          const tokens = Int32Array.of(last);
          await scheduler.next({ session: used[native], tokens, draw: 0, continues: false });
        }
        return speculation === undefined ? result : { ...result, speculative: speculation.counts };
      } finally {
        constraint?.dispose();
        speculation?.dispose();
      }
    });
  };
  const countedWork = async () => {
    scheduler.numGenerations++;
    try {
      return await work();
    } finally {
      scheduler.numGenerations--;
    }
  };
  try {
    return await inTurn(model, session, stop, countedWork);
  } finally {
    stopListening();
  }
}

/** Checks the option and fills in the default. Throws ERR_INVALID_ARGUMENT. */
export function checkMaxTokens(maxTokens = 256): number {
  const isCount = Number.isSafeInteger(maxTokens) && maxTokens >= 1;
  if (isCount || maxTokens === Number.POSITIVE_INFINITY) return maxTokens;
  throw invalid('maxTokens', 'an integer of at least 1, or Infinity', maxTokens);
}

/**
 * Truncates the session to the tokens that `prompt` begins with, without the last one of `prompt`,
 * and resolves to their number. A generation that is stopped does not use the session.
 */
async function keepPrefix(
  session: Session,
  prompt: Int32Array,
  stop: AbortController,
): Promise<number> {
  if (stop.signal.aborted) return 0;
  return awaitNative(() => session[native].keepPrefix({ tokens: prompt }));
}

interface DrawRequest {
  prompt: Int32Array;
  /** Number of tokens of the prompt, at its start, that the session has already. */
  cachedTokens: number;
  /**
   * Appends tokens to the session and draws the next one. `draw` counts the tokens drawn before.
   */
  next(tokens: Int32Array, draw: number): Promise<number>;
  /** Whether the token that was drawn completes the text. */
  isComplete(): boolean;
  logprobs: LogprobRecorder;
  output: Output;
  /** Maximum number of tokens. Below 1, only the prompt is appended. */
  limit: number;
  isStopped(): boolean;
  emit(token: GeneratedToken): void;
}

/** Draws tokens until the output, the limit or a signal ends the generation. */
async function drawTokens(request: DrawRequest): Promise<GenerationResult> {
  const { prompt, cachedTokens, next, isComplete, logprobs, output, limit, isStopped, emit } =
    request;
  const tokens: number[] = [];
  const texts: string[] = [];
  const startMs = performance.now();
  let firstTokenMs = startMs;
  let lastTokenMs = startMs;
  const result = (finishReason: GenerationResult['finishReason']): GenerationResult => {
    const decodeMs = lastTokenMs - firstTokenMs;
    const { toolCalls } = output;
    return {
      text: texts.join(''),
      toolCalls,
      tokens,
      finishReason: finishReason === 'stop' && toolCalls.length > 0 ? 'tool_calls' : finishReason,
      stopSequence: output.stopSequence,
      ...logprobs.ofResult(tokens.length),
      usage: { promptTokens: prompt.length, cachedTokens, completionTokens: tokens.length },
      timings: {
        prefillMs: firstTokenMs - startMs,
        decodeMs,
        tokensPerSecond: decodeMs > 0 ? ((tokens.length - 1) / decodeMs) * 1000 : 0,
      },
    };
  };

  let token = 0;
  let promptAborted = false;
  try {
    token = await next(prompt.subarray(cachedTokens), 0);
  } catch (error) {
    if ((error as { code?: string }).code !== 'ABORT_ERR') throw error;
    promptAborted = true;
  }
  firstTokenMs = performance.now();
  lastTokenMs = firstTokenMs;
  if (promptAborted) return result('abort');
  while (tokens.length < limit) {
    const completed = isComplete();
    const abort = isStopped();
    tokens.push(token);
    const isLast = completed || abort || tokens.length === limit;
    const { text, toolCalls, stopped } = output.push(token, { isLast });
    texts.push(text);
    const parts = toolCalls.length > 0 ? { toolCalls } : {};
    emit({ token, text, ...parts, ...logprobs.ofToken(tokens.length - 1) });
    if (stopped || completed) return result('stop');
    if (abort) return result('abort');
    if (tokens.length === limit) break;
    token = await next(Int32Array.of(token), tokens.length);
    lastTokenMs = performance.now();
  }
  return result('length');
}

/** The tokens that end a text. */
function endTokensOf({ config, tokenizer }: Pick<Model, 'config' | 'tokenizer'>): number[] {
  const ofTokenizer = tokenizer?.eosTokenId ?? null;
  return ofTokenizer === null ? config.eosTokenIds : [...config.eosTokenIds, ofTokenizer];
}

/** Decodes tokens to text and detects end-of-text tokens and stop strings. */
class Output {
  readonly endTokens: ReadonlySet<number>;
  readonly #stream: TokenStream | null;
  readonly #filter: StopFilter;
  readonly #stopTokens: StopTokens;
  readonly #parser: ToolCallParser | undefined;
  readonly #tokenizer: Tokenizer | null;
  /** The stop string that was found. */
  stopSequence: string | null = null;

  constructor(model: Model, stops: string[], filter: StopFilter, parser?: ToolCallParser) {
    const { tokenizer } = model;
    this.#tokenizer = tokenizer;
    this.#parser = parser;
    this.endTokens = new Set(endTokensOf(model));
    this.#stream = tokenizer?.stream({ continued: true }) ?? null;
    this.#filter = filter;
    this.#stopTokens = new StopTokens(tokenizer, stops);
  }

  /** `isLast`: no token follows, so no text is withheld. */
  push(token: number, { isLast }: { isLast: boolean }): Pushed {
    const isEndToken = this.endTokens.has(token);
    let piece = isEndToken ? '' : (this.#stream?.push(token) ?? '');
    const stopToken = piece === '' ? this.#stopTokens.match(token) : null;
    if (piece === '' && this.#parser !== undefined) piece = this.#toolCallToken(token);
    const isEnd = isEndToken || stopToken !== null;
    let text = this.#filter.push(piece);
    if (isEnd || isLast) {
      text += this.#filter.push(this.#stream?.flush() ?? '') + this.#filter.flush();
    }
    this.stopSequence = stopToken ?? this.#filter.matched;
    const stopped = isEnd || this.#filter.matched !== null;
    if (this.#parser === undefined) return { text, toolCalls: [], stopped };
    const parts = [this.#parser.push(text)];
    if (stopped || isLast) parts.push(this.#parser.flush());
    return {
      text: parts.map((part) => part.text).join(''),
      toolCalls: parts.flatMap((part) => part.toolCalls),
      stopped,
    };
  }

  /** The calls that are whole. */
  get toolCalls(): ToolCall[] {
    return this.#parser?.calls ?? [];
  }

  /** The text of a special token that is part of calls, else ''. */
  #toolCallToken(token: number): string {
    const text = this.#tokenizer?.decode([token], { skipSpecialTokens: false }) ?? '';
    return TOOL_CALL_TOKENS.includes(text) ? text : '';
  }
}

/** What a token adds to the output. */
interface Pushed {
  text: string;
  toolCalls: ToolCallDelta[];
  stopped: boolean;
}

/**
 * Calls `work` in its turn among the calls on the session. If `stop` is aborted before, calls it at
 * once: then it does not use the session.
 */
async function inTurn<T>(
  model: Model,
  session: Session | undefined,
  stop: AbortController,
  work: () => Promise<T>,
): Promise<T> {
  if (session === undefined) return work();
  if (session.model !== model) {
    throw invalidArgument('session belongs to another model: use a session of this model');
  }
  const endTurn = await session[callOrder].generation(stop.signal);
  try {
    return await work();
  } finally {
    endTurn();
  }
}

/**
 * Checks the response format. The returned function starts a constraint; undefined without a
 * format.
 */
function readResponseFormat(
  { config, tokenizer }: Model,
  format: ResponseFormat | undefined,
): ((signal: AbortSignal) => Promise<Constraint>) | undefined {
  if (format === undefined) return undefined;
  const source = grammarSource(format);
  if (tokenizer === null) {
    throw invalidArgument(
      'responseFormat requires a tokenizer, and the model has no tokenizer.json: omit it',
    );
  }
  const { vocabSize } = config;
  const endTokens = endTokensOf({ config, tokenizer });
  return (signal) => tokenizer[grammars].compile(source, { vocabSize, endTokens, signal });
}

/** Calls `work` with the given session, or with a temporary one for at most `length` tokens. */
async function withSession<T>(
  model: Model,
  session: Session | undefined,
  length: number,
  work: (session: Session) => Promise<T>,
): Promise<T> {
  if (session !== undefined) return work(session);
  const maxKvLen = Math.min(model.config.maxPositionEmbeddings, length);
  const temporary = await model.createSession({ maxKvLen });
  try {
    return await work(temporary);
  } finally {
    temporary.dispose();
  }
}

/** ERR_KV_CACHE_FULL for a prompt that does not fit behind the first `kvLen` tokens of the session. */
function promptTooLong(
  { model, maxKvLen }: Session,
  promptTokens: number,
  kvLen: number,
): DiffqkvError {
  const context = model.config.maxPositionEmbeddings;
  const used = kvLen === 0 ? '' : `, ${kvLen} of them in use`;
  const remedies = ['use a shorter prompt'];
  if (kvLen > 0) remedies.push('truncate the session');
  if (maxKvLen < context) remedies.push('create the session with a larger maxKvLen');
  const limit =
    maxKvLen === context
      ? `the context of the model has ${context}`
      : `maxKvLen of the session is ${maxKvLen}`;
  const ofModel = maxKvLen === context ? '' : ` (the context of the model has ${context})`;
  return new DiffqkvError(
    'ERR_KV_CACHE_FULL',
    `the prompt has ${promptTokens} tokens, and ${limit}${used}${ofModel}: ${remedies.join(', or ')}`,
  );
}

/** Whether a prompt is messages. */
function isChat(prompt: Prompt): prompt is readonly ChatMessage[] {
  return Array.isArray(prompt) && typeof prompt[0] === 'object';
}

function promptTokens(tokens: readonly number[], { vocabSize }: Model['config']): Int32Array {
  if (tokens.length > 0) return checkTokens(tokens, vocabSize);
  throw invalidArgument('the prompt has no tokens: pass a text, tokens or messages');
}

/**
 * Checks the prompt and copies it, so that the caller may change it. The returned function encodes
 * it. `continues`: the session has a begin-of-text token already, so none is added.
 */
function readPrompt(
  model: Model,
  prompt: Prompt,
  { chat, tools }: GenerateOptions,
): (continues: boolean) => Promise<Int32Array> {
  const { config, tokenizer } = model;
  if (typeof prompt !== 'string' && !Array.isArray(prompt)) {
    throw invalid('prompt', 'a string, an array of tokens or an array of messages', prompt);
  }
  if (chat !== undefined) readOptions('chat', chat, ENCODE_CHAT_OPTIONS);
  if (chat !== undefined && !isChat(prompt)) {
    throw invalidArgument('chat requires a prompt of messages: omit chat, or pass messages');
  }
  if (typeof prompt !== 'string' && !isChat(prompt)) {
    const tokens = promptTokens(prompt as readonly number[], config);
    return async () => tokens;
  }
  if (tokenizer === null) {
    throw invalidArgument(
      'a prompt of text requires a tokenizer, and the model has no tokenizer.json: pass tokens',
    );
  }
  model.kvCache; // throws ERR_DISPOSED: the tokenizer would start again
  // The template reads the messages before this returns.
  const shown = tools === undefined ? chat : { ...chat, tools };
  const encoded = isChat(prompt) ? tokenizer.encodeChat(prompt, shown) : null;
  encoded?.catch(() => {}); // the returned function reports the error
  return async (continues) => {
    const tokens =
      (await encoded) ??
      (await tokenizer.encodeAsync(prompt as string, { addSpecialTokens: !continues }));
    const hasSecondBos = continues && tokens[0] === tokenizer.bosTokenId;
    return promptTokens(hasSecondBos ? tokens.slice(1) : tokens, config);
  };
}
