import { isAborted, onAbort } from './abort';
import { CallOrder } from './call_order';
import { type ChatMessage, checkMessages } from './chat';
import { DiffqkvError, invalid, invalidArgument } from './errors';
import { checkMaxTokens, GENERATE_OPTIONS, type GenerateOptions, generateTokens } from './generate';
import { type GeneratedToken, Generation, type GenerationResult } from './generation';
import type { Model } from './model';
import { type OptionNames, readOptions } from './options';
import { checkReceiver } from './receiver';
import type { Scheduler } from './scheduler';
import { SESSION_OPTIONS, type Session, type SessionOptions } from './session';
import { SPECULATIVE_OPTIONS } from './speculative';
import type { EncodeChatOptions, Tokenizer } from './tokenizer';

/** Options of {@link Model.createChat}: those of its session, and what the conversation begins with. */
export interface ChatOptions
  extends SessionOptions,
    Omit<EncodeChatOptions, 'addGenerationPrompt' | 'continueFinalMessage'> {
  /** Text of a system message at the start of the conversation. Default: no such message. */
  system?: string;
  /**
   * A conversation to continue, such as the `messages` of an earlier chat. Not allowed with
   * `system` if it has a system message. Default: none.
   */
  messages?: readonly ChatMessage[];
  /**
   * What `send` does if the context has no room for the conversation. 'error', the default: fails
   * with ERR_KV_CACHE_FULL. 'shift': no longer shows the model the oldest exchanges after the
   * system message. An exchange is a user message and all messages up to the next one. A shift
   * happens if the prompt and `maxTokens` more, counted as at most half of maxKvLen, do not fit. It
   * drops as many exchanges as leave a quarter of the prompt's room free, so that the next turns
   * need no shift.
   */
  contextPolicy?: 'error' | 'shift';
}

/** Options of {@link Chat.send}: all of {@link Model.generate} but `session` and `chat`. */
export interface SendOptions extends Omit<GenerateOptions, 'session' | 'chat'> {}

const CHAT_OPTIONS: OptionNames<ChatOptions> = {
  system: true,
  messages: true,
  contextPolicy: true,
  tools: true,
  documents: true,
  templateOptions: true,
  parseSpecial: true,
  ...SESSION_OPTIONS,
};

const { session: _session, chat: _chat, ...sendOptions } = GENERATE_OPTIONS;
const SEND_OPTIONS: OptionNames<SendOptions> = sendOptions;

/** How the messages of a chat become tokens. */
interface Encoding {
  tokenizer: Tokenizer;
  options: EncodeChatOptions;
}

/** The prompt of a turn, and how many messages after the system message it no longer has. */
interface Turn {
  tokens: number[];
  numDropped: number;
}

/**
 * A conversation with a model, and the session that has it in its KV cache. Created by
 * {@link Model.createChat}. On each turn the chat template writes the whole conversation; the tokens
 * that the session has already, up to the first difference, are kept, and only the rest is
 * computed. `result.usage` counts both. Methods throw or reject with ERR_DISPOSED after `dispose`.
 */
export class Chat implements Disposable {
  /** The model that answers. */
  readonly model: Model;
  /**
   * The session of this chat. Other calls on it are allowed: the next `send` keeps what still
   * belongs to the conversation.
   */
  readonly session: Session;
  readonly #scheduler: Scheduler;
  readonly #encoding: Encoding;
  readonly #shifts: boolean;
  readonly #order = new CallOrder();
  #messages: ChatMessage[];
  /** Messages at the start, of the system, that are never dropped. */
  readonly #numFixed: number;
  #numDropped = 0;

  private constructor(
    model: Model,
    scheduler: Scheduler,
    session: Session,
    encoding: Encoding,
    messages: ChatMessage[],
    shifts: boolean,
  ) {
    this.model = model;
    this.#scheduler = scheduler;
    this.session = session;
    this.#encoding = encoding;
    this.#messages = messages;
    this.#numFixed = numFixed(messages);
    this.#shifts = shifts;
  }

  /** @internal */
  static async create(model: Model, scheduler: Scheduler, options: ChatOptions): Promise<Chat> {
    const given = readOptions('options', options, CHAT_OPTIONS);
    const { system, messages = [], contextPolicy = 'error', ...others } = given;
    const { tools, documents, templateOptions, parseSpecial, ...sessionOptions } = others;
    if (system !== undefined && typeof system !== 'string') {
      throw invalid('system', 'a string', system);
    }
    if (contextPolicy !== 'error' && contextPolicy !== 'shift') {
      throw invalid('contextPolicy', "'error' or 'shift'", contextPolicy);
    }
    if (!Array.isArray(messages)) throw invalid('messages', 'an array of messages', messages);
    const history = messages.length === 0 ? [] : copyMessages(messages);
    if (system !== undefined) {
      if (numFixed(history) > 0) {
        throw invalidArgument('messages have a system message already: omit system');
      }
      history.unshift({ role: 'system', content: system });
    }
    const { tokenizer } = model;
    if (tokenizer === null) {
      throw invalidArgument(
        'a chat requires a tokenizer, and the model has no tokenizer.json: use model.generate',
      );
    }
    const copies = {
      tools: copied('tools', tools),
      documents: copied('documents', documents),
      templateOptions: copied('templateOptions', templateOptions),
    };
    const encoding = { tokenizer, options: { ...copies, parseSpecial } };
    sessionOptions.selectiveV = copied('selectiveV', sessionOptions.selectiveV);
    model.kvCache; // throws ERR_DISPOSED: the tokenizer would start again
    // Finds a missing chat template, and one that rejects the system message, before the first turn.
    const probe = [...history.slice(0, numFixed(history)), { role: 'user', content: 'Hello' }];
    await tokenizer.encodeChat(probe, encoding.options);
    const session = await model.createSession(sessionOptions);
    return new Chat(model, scheduler, session, encoding, history, contextPolicy === 'shift');
  }

  /**
   * True only for an object that this class created.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Chat {
    return typeof value === 'object' && value !== null && #messages in value;
  }

  /**
   * A copy of the conversation: the system message, if there is one, and all that was sent and
   * answered. A turn is added when its generation ends.
   */
  get messages(): ChatMessage[] {
    return structuredClone(this.#messages);
  }

  /**
   * Number of messages, the oldest after the system message, that the model no longer sees because
   * of `contextPolicy` 'shift'. They are still in `messages`.
   */
  get numDroppedMessages(): number {
    return this.#numDropped;
  }

  /**
   * Appends a message, a text of the role 'user', or several messages such as the results of tools,
   * and generates the answer. At the end, they and the answer are in `messages`: `{ role:
   * 'assistant', content }` with the text of the result, and `tool_calls` if there are any. After an
   * abort the answer is what there is so far; if that is nothing, or after an error, `messages` is as
   * it was before. Calls run one after another.
   *
   * Never throws. The generation fails like that of {@link Model.generate}: with
   * ERR_INVALID_ARGUMENT, also if the chat template rejects the messages, and ERR_KV_CACHE_FULL if
   * the conversation, or with `contextPolicy` 'shift' its last exchange, leaves no room in the
   * context.
   */
  send(
    message: string | ChatMessage | readonly ChatMessage[],
    options: SendOptions = {},
  ): Generation {
    return new Generation((emit, stop) => this.#send(message, options, emit, stop));
  }

  /**
   * Removes all messages but the system message, after earlier calls are done. The cache keeps its
   * tokens until the next turn, so the system message is not computed again.
   */
  async reset(): Promise<void> {
    return this.#order.call(async () => {
      this.session.kvLen; // throws ERR_DISPOSED
      this.#messages = this.#messages.slice(0, this.#numFixed);
      this.#numDropped = 0;
    });
  }

  /**
   * Frees the session. A running answer, and what waits for it, ends with ERR_DISPOSED. A second
   * call does nothing. `messages` stays readable.
   */
  dispose(): void {
    this.session.dispose();
  }

  /** Calls `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  async #send(
    message: string | ChatMessage | readonly ChatMessage[],
    options: SendOptions,
    emit: (token: GeneratedToken) => void,
    stop: AbortController,
  ): Promise<GenerationResult> {
    const added = sentMessages(message);
    const given = copiedOptions(options);
    const maxTokens = checkMaxTokens(given.maxTokens);
    const { tools = this.#encoding.options.tools } = given;
    if (isAborted(given.signal)) stop.abort();
    const stopListening = onAbort(given.signal, () => stop.abort());
    const endTurn = await this.#order.generation(stop.signal);
    try {
      const messages = [...this.#messages, ...added];
      const encode = (numDropped: number) => this.#encode(messages, numDropped, tools);
      // An aborted generation uses no context, and may not be in its turn.
      const turn = stop.signal.aborted
        ? { tokens: await encode(this.#numDropped), numDropped: this.#numDropped }
        : await this.#prepare(messages, maxTokens, encode);
      const result = await generateTokens({
        model: this.model,
        scheduler: this.#scheduler,
        prompt: turn.tokens,
        isWhole: true,
        options: { ...given, tools, session: this.session },
        emit,
        stop,
      });
      const { text, toolCalls, finishReason } = result;
      if (finishReason !== 'abort' || text !== '' || toolCalls.length > 0) {
        const answer: ChatMessage = { role: 'assistant', content: text };
        if (toolCalls.length > 0) answer.tool_calls = structuredClone(toolCalls);
        this.#messages = [...messages, answer];
        this.#numDropped = turn.numDropped;
      }
      return result;
    } finally {
      stopListening();
      endTurn();
    }
  }

  /** Encodes a conversation so that it fits, as the context policy says. */
  async #prepare(
    messages: ChatMessage[],
    maxTokens: number,
    encode: (numDropped: number) => Promise<number[]>,
  ): Promise<Turn> {
    const { maxKvLen } = this.session;
    const all = { tokens: await encode(this.#numDropped), numDropped: this.#numDropped };
    if (!this.#shifts) {
      if (all.tokens.length >= maxKvLen) throw this.#contextFull(all.tokens.length);
      return all;
    }
    const room = maxKvLen - Math.min(maxTokens, Math.floor(maxKvLen / 2));
    if (all.tokens.length <= room) return all;
    // Where the prompt may begin: at each later user message.
    const starts: number[] = [];
    for (let i = this.#numFixed + this.#numDropped + 1; i < messages.length; i++) {
      if (messages[i]?.role === 'user') starts.push(i - this.#numFixed);
    }
    let shortest = all;
    let [first, last] = [0, starts.length - 1];
    while (first <= last) {
      const middle = Math.floor((first + last) / 2);
      const numDropped = starts[middle] as number;
      const turn = { tokens: await encode(numDropped), numDropped };
      const fits = turn.tokens.length <= (3 / 4) * room;
      if (fits || middle === starts.length - 1) shortest = turn;
      if (fits) last = middle - 1;
      else first = middle + 1;
    }
    if (shortest.tokens.length >= maxKvLen) throw this.#contextFull(shortest.tokens.length);
    return shortest;
  }

  /** The tokens of a conversation without `numDropped` messages after those of the system. */
  #encode(
    messages: ChatMessage[],
    numDropped: number,
    tools: readonly object[] | undefined,
  ): Promise<number[]> {
    this.model.kvCache; // throws ERR_DISPOSED: the tokenizer would start again
    const seen = messages.filter((_, i) => i < this.#numFixed || i >= this.#numFixed + numDropped);
    const { tokenizer, options } = this.#encoding;
    return tokenizer.encodeChat(seen, { ...options, tools });
  }

  #contextFull(numTokens: number): DiffqkvError {
    const { maxKvLen } = this.session;
    const context = this.model.config.maxPositionEmbeddings;
    const remedies = this.#shifts
      ? ['send a shorter message']
      : ['send a shorter message', 'call reset', "create the chat with contextPolicy: 'shift'"];
    if (maxKvLen < context) {
      remedies.push(
        `create the chat with a larger maxKvLen (the context of the model has ${context})`,
      );
    }
    const what = this.#shifts ? 'the last exchange' : 'the conversation';
    return new DiffqkvError(
      'ERR_KV_CACHE_FULL',
      `${what} has ${numTokens} tokens, and maxKvLen of the chat is ${maxKvLen}, which leaves no ` +
        `room for an answer: ${remedies.join(', or ')}`,
    );
  }
}

checkReceiver(Chat, 'a chat');

/** Number of messages of the system at the start. */
function numFixed(messages: readonly ChatMessage[]): number {
  const first = messages.findIndex(({ role }) => role !== 'system' && role !== 'developer');
  return first < 0 ? messages.length : first;
}

function sentMessages(message: string | ChatMessage | readonly ChatMessage[]): ChatMessage[] {
  if (typeof message === 'string') return [{ role: 'user', content: message }];
  if (typeof message !== 'object' || message === null) {
    throw invalid('message', 'a text, a message or an array of messages', message);
  }
  return copyMessages(Array.isArray(message) ? message : [message as ChatMessage]);
}

/** A copy that the caller does not change. Throws ERR_INVALID_ARGUMENT on what is not a message. */
function copyMessages(messages: readonly ChatMessage[]): ChatMessage[] {
  checkMessages(messages);
  return copied('messages', messages) as ChatMessage[];
}

/** Checks the names of the options and copies their values, which the caller may change. */
function copiedOptions(options: SendOptions): SendOptions {
  const given = readOptions('options', options, SEND_OPTIONS);
  const { stop, logitBias, responseFormat, tools, toolChoice, speculative } = given;
  const values = { stop, logitBias, responseFormat, tools, toolChoice };
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined) Object.assign(given, { [name]: copied(name, value) });
  }
  if (speculative !== undefined) {
    given.speculative = readOptions('speculative', speculative, SPECULATIVE_OPTIONS);
  }
  return given;
}

/** A copy of JSON values or of a Map. Throws ERR_INVALID_ARGUMENT if they cannot be copied. */
function copied<T>(name: string, value: T): T {
  try {
    return structuredClone(value);
  } catch (error) {
    throw invalidArgument(`${name} must have JSON values: ${(error as Error).message}`);
  }
}
