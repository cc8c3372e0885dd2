import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { isAborted, onAbort, throwIfAborted } from './abort';
import {
  CHAT_TEMPLATE_OPTIONS,
  type ChatMessage,
  ChatTemplate,
  type ChatTemplateOptions,
  chatTemplateSource,
  checkMessages,
} from './chat';
import { createDecoder, type DecoderConfig } from './decoder';
import {
  aborted,
  checkBoolean,
  checkInteger,
  DiffqkvError,
  invalid,
  invalidArgument,
  invalidCheckpoint,
  unsupportedModel,
} from './errors';
import { otherVocabulary } from './explain';
import { readRegularFile } from './files';
import { GrammarCompiler } from './grammar/compiler';
import { endProcess, grammars, toolTemplate } from './internal';
import { type OptionNames, readOptions } from './options';
import { checkReceiver } from './receiver';
import { TokenizerClient } from './tokenizer_client';
import type { EncodeCall } from './tokenizer_process';
import { withParsedArguments } from './tools';

/**
 * Decodes token by token. The joined results of `push` and `flush` are what `decode` returns for
 * all the tokens.
 */
export interface TokenStream {
  /** Returns the text that is known after this token: '' while a character is incomplete. */
  push(token: number): string;
  /** Returns the rest at the end: U+FFFD if a character is incomplete. */
  flush(): string;
}

/** Options of {@link Tokenizer.decode}. */
export interface DecodeOptions {
  /** Omit special tokens, such as `<|end_of_text|>`. Default true. */
  skipSpecialTokens?: boolean;
}

/** Options of {@link Tokenizer.stream}. */
export interface StreamOptions extends DecodeOptions {
  /**
   * The tokens continue an earlier text, so a space at their start is kept. SentencePiece drops a
   * space at the start of a text. Default false.
   */
  continued?: boolean;
}

/** Options of {@link Tokenizer.encode}. */
export interface EncodeOptions {
  /**
   * Add the special tokens that the checkpoint puts around a text, such as `<|begin_of_text|>`. A
   * text that begins with the begin-of-text token, as a chat template writes it, gets no second
   * one. Default true.
   */
  addSpecialTokens?: boolean;
  /**
   * The names of control tokens in the text become these tokens. If false, they stay text, so a
   * user's words cannot end a message or begin another one. Control tokens are the special tokens,
   * and the other added tokens that the chat template contains. Default true.
   */
  parseSpecial?: boolean;
}

/** Options of {@link Tokenizer.encodeChat}. */
export interface EncodeChatOptions extends ChatTemplateOptions {
  /**
   * The names of control tokens in the messages, tools, documents and template options become these
   * tokens. A message can then end itself and begin another one, with any role. Default false.
   */
  parseSpecial?: boolean;
}

/** The names of {@link EncodeChatOptions}. */
export const ENCODE_CHAT_OPTIONS: OptionNames<EncodeChatOptions> = {
  ...CHAT_TEMPLATE_OPTIONS,
  parseSpecial: true,
};

// The largest tokenizer.json of the models on the Hugging Face Hub has about 33 MB.
const MAX_TOKENIZER_BYTES = 64 * 2 ** 20;
const MAX_CONFIG_BYTES = 8 * 2 ** 20;
const MAX_TEMPLATE_BYTES = 2 ** 20;

// The special tokens that chat templates see.
const TEMPLATE_VARIABLES = ['bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'].map(
  (name) => `${name}_token`,
);

// `encode` holds the event loop. 8,192 characters take about 5 ms.
const MAX_SYNCHRONOUS_CHARACTERS = 8192;
const SYNCHRONOUS_LIMIT_MS = 1000;

/**
 * Converts text to tokens and back, as `tokenizer.json` and `tokenizer_config.json` of a checkpoint
 * define. The tokens are those of the Rust library `tokenizers`, which the Python packages use. The
 * library runs in a process of its own. Decoding returns the text of the tokens byte for byte: it
 * does not clean up spaces (` .` to `.`), which some tokenizer_config.json request.
 */
export class Tokenizer {
  readonly #client: TokenizerClient;
  readonly #decoderConfig: DecoderConfig | null;
  readonly #text: Buffer;
  readonly #ranges: Uint32Array;
  readonly #pieces: (string | undefined)[] = [];
  readonly #specialTexts: Set<string>;
  readonly #chatTemplate: ChatTemplate | null;
  readonly #directory: string;
  #prependsBos = false;
  #grammars: GrammarCompiler | undefined;

  /** The largest token id plus one. */
  readonly vocabSize: number;
  /** Id of `bos_token` in tokenizer_config.json, or null. */
  readonly bosTokenId: number | null;
  /** Id of `eos_token` in tokenizer_config.json, or null. */
  readonly eosTokenId: number | null;

  /**
   * True only for an object that this class created.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Tokenizer {
    return typeof value === 'object' && value !== null && #client in value;
  }

  private constructor(directory: string, client: TokenizerClient, jinjaFile: string | null) {
    const { text, ranges, addedTokens, config, decoder } = client.loaded;
    this.#directory = directory;
    this.#client = client;
    this.#decoderConfig = decoder as DecoderConfig | null;
    // Rejects a decoder that is not supported before it is used.
    createDecoder(this.#decoderConfig, { continued: false });
    this.#text = Buffer.from(text.buffer, text.byteOffset, text.byteLength);
    this.#ranges = ranges;
    this.vocabSize = ranges.length / 2;
    const variables = Object.fromEntries(
      Object.entries(config).filter(([name]) => TEMPLATE_VARIABLES.includes(name)),
    ) as Record<string, string>;
    const idOf = new Map(addedTokens.map(({ content, id }) => [content, id]));
    this.bosTokenId = idOf.get(variables.bos_token ?? '') ?? null;
    this.eosTokenId = idOf.get(variables.eos_token ?? '') ?? null;
    const special = addedTokens.filter((token) => token.special).map(({ content }) => content);
    this.#specialTexts = new Set(special);
    for (const name of ['bos_token', 'eos_token']) {
      if (variables[name]) this.#specialTexts.add(variables[name]);
    }
    const sources = chatTemplateSource(config, jinjaFile);
    this.#chatTemplate = sources === null ? null : new ChatTemplate(directory, sources, variables);
  }

  /**
   * Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a directory; the
   * last two are optional. Tokens of tokenizer_config.json that tokenizer.json lacks are added, as
   * transformers does. Resolves to null if the directory has no vocabulary.
   *
   * Rejects with ERR_INVALID_CHECKPOINT (the message names the file) if a file is malformed, too
   * long or not a regular file, ERR_UNSUPPORTED_MODEL if a part of the tokenizer is not supported
   * or if the vocabulary is only in another format, ERR_INVALID_ARGUMENT if `directory` is not a
   * string, ERR_DEVICE_UNAVAILABLE if the library `tokenizers` does not work on this platform,
   * ABORT_ERR if `signal` is aborted.
   */
  static async fromDirectory(
    directory: string,
    options: { signal?: AbortSignal } = {},
  ): Promise<Tokenizer | null> {
    if (typeof directory !== 'string') throw invalid('directory', 'a path', directory);
    const { signal } = readOptions('options', options, { signal: true });
    throwIfAborted(signal);
    const file = join(directory, 'tokenizer.json');
    const configFile = join(directory, 'tokenizer_config.json');
    const jinja = join(directory, 'chat_template.jinja');
    const tokenizer = await readRegularFile(file, MAX_TOKENIZER_BYTES);
    if (tokenizer === null) return withoutTokenizerJson(directory);
    const config = (await readRegularFile(configFile, MAX_CONFIG_BYTES)) ?? Buffer.alloc(0);
    const template = await readRegularFile(jinja, MAX_TEMPLATE_BYTES);
    const source = { file, configFile, tokenizer, config, template: template ?? Buffer.alloc(0) };
    const client = new TokenizerClient(source);
    const stopListening = onAbort(signal, () => client.close());
    try {
      throwIfAborted(signal); // while the files were read
      await client.load();
      const result = new Tokenizer(directory, client, template?.toString('utf8') ?? null);
      await result.#prepare(client.loaded.config.add_bos_token === true);
      return result;
    } catch (error) {
      client.close();
      if (isAborted(signal)) throw aborted('while the tokenizer was loaded');
      if (!(error instanceof DiffqkvError)) {
        throw invalidCheckpoint(file, `malformed: ${(error as Error).message}`);
      }
      if (error.message.startsWith(directory)) throw error;
      throw new DiffqkvError(error.code, `${file}: ${error.message}`);
    } finally {
      stopListening();
    }
  }

  /** Rejects if the tokenizer cannot encode, while the caller can name the file. */
  async #prepare(addsBos: boolean): Promise<void> {
    const call = { addSpecialTokens: true, literalSpans: [] };
    const first = (await this.#client.encode({ text: '', ...call }))[0];
    // Older checkpoints have add_bos_token without a post_processor that adds the token.
    this.#prependsBos = addsBos && this.bosTokenId !== null && first !== this.bosTokenId;
    await this.#client.encode({ text: 'a 1.\u00e9', ...call });
  }

  /**
   * Returns the tokens of a text of at most 8192 characters (UTF-16 code units). It holds the event
   * loop while another process encodes. Throws ERR_INVALID_ARGUMENT if `text` is not a string or is
   * longer, ERR_INVALID_CHECKPOINT if the tokenizer fails or does not answer within 1 s, because it
   * is stuck, busy with other texts, or starting after `dispose`.
   */
  encode(text: string, options: EncodeOptions = {}): number[] {
    const call = encodeCall(text, options);
    if (text.length > MAX_SYNCHRONOUS_CHARACTERS) {
      throw invalidArgument(
        `text has ${text.length} characters, and encode accepts at most ` +
          `${MAX_SYNCHRONOUS_CHARACTERS}: use encodeAsync`,
      );
    }
    const tokens = this.#client.encodeNow(call, SYNCHRONOUS_LIMIT_MS);
    if (tokens === undefined) {
      throw invalidCheckpoint(
        this.#directory,
        `the tokenizer did not finish within ${SYNCHRONOUS_LIMIT_MS} ms; it may be busy with ` +
          'other texts, or be starting: use encodeAsync',
      );
    }
    return this.#withOneBos(tokens, call);
  }

  /**
   * Resolves to the tokens of a text of any length. Another process encodes, so the event loop is
   * free. Rejects with ERR_INVALID_ARGUMENT if `text` is not a string, ERR_INVALID_CHECKPOINT if
   * the tokenizer fails, takes too long (10 s and 0.1 s for each 1,000 characters) or takes too
   * much memory.
   */
  async encodeAsync(text: string, options: EncodeOptions = {}): Promise<number[]> {
    const call = encodeCall(text, options);
    return this.#withOneBos(await this.#client.encode(call), call);
  }

  /**
   * Formats a conversation with the checkpoint's chat template and resolves to its tokens. Only
   * the template's own text gives control tokens: what comes from the arguments stays text. Roles
   * that chat templates know, such as `user`, count as text of the template. If the arguments of a
   * call in `tool_calls` are JSON as text, the template sees the value. Rejects like
   * `applyChatTemplate` and `encodeAsync`.
   */
  async encodeChat(
    messages: readonly ChatMessage[],
    options: EncodeChatOptions = {},
  ): Promise<number[]> {
    const { parseSpecial = false, ...given } = readOptions('options', options, ENCODE_CHAT_OPTIONS);
    checkBoolean('parseSpecial', parseSpecial);
    const template = this.#template(messages);
    const parts = template.renderParts(withParsedArguments(messages), given);
    const literalSpans: number[] = [];
    let end = 0;
    for (const { text, fromUser } of parts) {
      if (fromUser && !parseSpecial) literalSpans.push(end, end + text.length);
      end += text.length;
    }
    const text = parts.map((part) => part.text).join('');
    // The template writes the special tokens itself, including begin-of-text.
    return this.#client.encode({ text, addSpecialTokens: false, literalSpans });
  }

  /**
   * Returns the text of tokens. Ill-formed UTF-8 becomes U+FFFD. An id that the tokenizer does not
   * have gives no text. Throws ERR_INVALID_ARGUMENT if an element is not an integer of at least 0.
   */
  decode(tokens: ArrayLike<number>, options: DecodeOptions = {}): string {
    if (typeof tokens !== 'object' || tokens === null) {
      throw invalid('tokens', 'an array of token ids', tokens);
    }
    checkInteger('the length of tokens', tokens.length, 0, 2 ** 32 - 1);
    const stream = this.stream(readOptions('options', options, { skipSpecialTokens: true }));
    return Array.from(tokens, (token) => stream.push(token)).join('') + stream.flush();
  }

  /**
   * Creates an incremental decoder that never splits a character. Its `push` throws
   * ERR_INVALID_ARGUMENT unless the token is an integer of at least 0.
   */
  stream(options: StreamOptions = {}): TokenStream {
    const names = { skipSpecialTokens: true, continued: true } as const;
    const { skipSpecialTokens = true, continued = false } = readOptions('options', options, names);
    checkBoolean('skipSpecialTokens', skipSpecialTokens);
    checkBoolean('continued', continued);
    const decoder = createDecoder(this.#decoderConfig, { continued });
    return {
      push: (token) => {
        checkInteger('token', token, 0);
        const piece = this.#piece(token);
        const isSkipped = skipSpecialTokens && this.#specialTexts.has(piece ?? '');
        return piece === undefined || isSkipped ? '' : decoder.push(piece);
      },
      flush: () => decoder.flush(),
    };
  }

  /**
   * Formats a conversation with the checkpoint's chat template. The text includes the special
   * tokens. Encode it only if you trust the messages: a message that contains the name of a control
   * token can begin a message of another role. `encodeChat` prevents that. Throws
   * ERR_UNSUPPORTED_MODEL if the checkpoint has no template or the template uses a construct that
   * is not supported, ERR_INVALID_ARGUMENT if the template rejects the messages,
   * ERR_INVALID_CHECKPOINT if the template has a syntax error or exceeds a limit.
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const given = readOptions('options', options, CHAT_TEMPLATE_OPTIONS);
    return this.#template(messages).render(messages, given);
  }

  /** @internal */
  [endProcess](): void {
    this.#client.close();
    this[grammars].close(); // also if there is none yet: generations that end could start one
  }

  /** @internal */
  get [toolTemplate](): string | null {
    return this.#chatTemplate?.toolSource ?? null;
  }

  /** @internal */
  get [grammars](): GrammarCompiler {
    this.#grammars ??= new GrammarCompiler({
      text: this.#text,
      ranges: this.#ranges,
      specialTexts: this.#specialTexts,
      decoder: this.#decoderConfig,
    });
    return this.#grammars;
  }

  #template(messages: readonly ChatMessage[]): ChatTemplate {
    checkMessages(messages);
    if (this.#chatTemplate !== null) return this.#chatTemplate;
    throw unsupportedModel(
      this.#directory,
      'the model has no chat template (chat_template.jinja, or chat_template in ' +
        'tokenizer_config.json): pass the prompt as text',
    );
  }

  #withOneBos(tokens: number[], { addSpecialTokens }: EncodeCall): number[] {
    const bos = this.bosTokenId;
    if (!addSpecialTokens || bos === null) return tokens;
    if (this.#prependsBos && tokens[0] !== bos) tokens.unshift(bos);
    else if (tokens[0] === bos && tokens[1] === bos) tokens.shift();
    return tokens;
  }

  #piece(token: number): string | undefined {
    const start = this.#ranges[2 * token];
    const end = this.#ranges[2 * token + 1];
    if (start === undefined || end === undefined || start > end) return undefined;
    this.#pieces[token] ??= this.#text.toString('utf8', start, end);
    return this.#pieces[token];
  }
}

checkReceiver(Tokenizer, 'a tokenizer');

/** Checks the arguments of `encode` and `encodeAsync`. */
function encodeCall(text: string, options: EncodeOptions): EncodeCall {
  if (typeof text !== 'string') throw invalid('text', 'a string', text);
  const names = { addSpecialTokens: true, parseSpecial: true } as const;
  const { addSpecialTokens = true, parseSpecial = true } = readOptions('options', options, names);
  checkBoolean('addSpecialTokens', addSpecialTokens);
  checkBoolean('parseSpecial', parseSpecial);
  return { text, addSpecialTokens, literalSpans: parseSpecial ? [] : [0, text.length] };
}

/** Null if the directory has no vocabulary, ERR_UNSUPPORTED_MODEL if it is in another format. */
async function withoutTokenizerJson(directory: string): Promise<null> {
  const entries: string[] = await readdir(directory).catch(() => []);
  const problem = otherVocabulary(directory, entries);
  if (problem !== null) throw problem;
  return null;
}
