import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import {
  type ChatMessage,
  ChatTemplate,
  type ChatTemplateOptions,
  chatTemplateSource,
  checkMessages,
} from './chat';
import { createDecoder, type DecoderConfig } from './decoder';
import {
  checkBoolean,
  checkInteger,
  checkObject,
  DiffqkvError,
  invalid,
  invalidCheckpoint,
  unsupportedModel,
} from './errors';
import { readRegularFile } from './files';
import { endProcess } from './internal';
import { TokenizerProcess } from './tokenizer_process';
import type { Loaded } from './tokenizer_worker';

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

// The largest tokenizer.json of the models on the Hugging Face Hub has about 33 MB.
const MAX_TOKENIZER_BYTES = 64 * 2 ** 20;
const MAX_CONFIG_BYTES = 8 * 2 ** 20;
const MAX_TEMPLATE_BYTES = 2 ** 20;

// Without tokenizer.json, one of these files has the vocabulary.
const OTHER_VOCABULARIES = ['tokenizer.model', 'vocab.json', 'merges.txt', 'vocab.txt'];

// A tokenizer that is not used any more ends its process.
const unused = new FinalizationRegistry<TokenizerProcess>((process) => process.close());

interface Parts {
  directory: string;
  process: TokenizerProcess;
  loaded: Loaded;
  jinjaFile: string | null;
}

/**
 * Converts text to tokens and back, as `tokenizer.json` and `tokenizer_config.json` of a checkpoint
 * define. The tokens are those of the Rust library `tokenizers`, which the Python packages use. The
 * library runs in a process of its own. Decoding returns the text of the tokens byte for byte: it
 * does not clean up spaces (` .` to `.`), which some tokenizer_config.json request.
 */
export class Tokenizer {
  readonly #process: TokenizerProcess;
  readonly #decoderConfig: DecoderConfig | null;
  readonly #text: Buffer;
  readonly #ranges: Uint32Array;
  readonly #pieces: (string | undefined)[] = [];
  readonly #specialTexts: Set<string>;
  readonly #controls: string[];
  readonly #chatTemplate: ChatTemplate | null;
  readonly #directory: string;
  #prependsBos = false;

  /** The largest token id plus one. */
  readonly vocabSize: number;
  /** Id of `bos_token` in tokenizer_config.json, or null. */
  readonly bosTokenId: number | null;
  /** Id of `eos_token` in tokenizer_config.json, or null. */
  readonly eosTokenId: number | null;

  private constructor({ directory, process, loaded, jinjaFile }: Parts) {
    const { text, ranges, addedTokens, config } = loaded;
    this.#directory = directory;
    this.#process = process;
    unused.register(this, process);
    this.#decoderConfig = loaded.decoder as DecoderConfig | null;
    // Rejects a decoder that is not supported before it is used.
    createDecoder(this.#decoderConfig, { continued: false });
    this.#text = Buffer.from(text.buffer, text.byteOffset, text.byteLength);
    this.#ranges = ranges;
    this.vocabSize = ranges.length / 2;
    const names = ['bos_token', 'eos_token', 'unk_token', 'pad_token'];
    const variables = Object.fromEntries(
      names.filter((name) => config[name]).map((name) => [name, config[name] as string]),
    );
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
    const templates = sources === null ? '' : `${sources.default} ${sources.toolUse ?? ''}`;
    this.#controls = addedTokens
      .map(({ content }) => content)
      .filter(
        (content) =>
          this.#specialTexts.has(content) || (content.trim() !== '' && templates.includes(content)),
      );
  }

  /**
   * Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a directory; the
   * last two are optional. Tokens of tokenizer_config.json that tokenizer.json lacks are added, as
   * transformers does. Resolves to null if the directory has no vocabulary.
   *
   * Rejects with ERR_INVALID_CHECKPOINT (the message names the file) if a file is malformed, too
   * long or not a regular file, ERR_UNSUPPORTED_MODEL if a part of the tokenizer is not supported
   * or if the vocabulary is only in another format, ERR_INVALID_ARGUMENT if `directory` is not a
   * string, ERR_DEVICE_UNAVAILABLE if the library `tokenizers` does not work on this platform.
   */
  static async fromDirectory(directory: string): Promise<Tokenizer | null> {
    if (typeof directory !== 'string') throw invalid('directory', 'a path', directory);
    const file = join(directory, 'tokenizer.json');
    const configFile = join(directory, 'tokenizer_config.json');
    const jinja = join(directory, 'chat_template.jinja');
    const tokenizer = await readRegularFile(file, MAX_TOKENIZER_BYTES);
    if (tokenizer === null) return withoutTokenizerJson(directory);
    const config = (await readRegularFile(configFile, MAX_CONFIG_BYTES)) ?? Buffer.alloc(0);
    const jinjaFile = (await readRegularFile(jinja, MAX_TEMPLATE_BYTES))?.toString('utf8') ?? null;
    const process = new TokenizerProcess({ file, configFile, tokenizer, config });
    try {
      const loaded = await process.load();
      const result = new Tokenizer({ directory, process, loaded, jinjaFile });
      await result.#prepare(loaded.config.add_bos_token === true);
      return result;
    } catch (error) {
      process.close();
      if (!(error instanceof DiffqkvError)) {
        throw invalidCheckpoint(file, `malformed: ${(error as Error).message}`);
      }
      if (error.message.startsWith(directory)) throw error;
      throw new DiffqkvError(error.code, `${file}: ${error.message}`);
    }
  }

  /** Rejects if the tokenizer cannot encode, while the caller can name the file. */
  async #prepare(addsBos: boolean): Promise<void> {
    const first = (await this.#encode('', true, true))[0];
    // Older checkpoints have add_bos_token without a post_processor that adds the token.
    this.#prependsBos = addsBos && this.bosTokenId !== null && first !== this.bosTokenId;
    await this.#encode('a 1.\u00e9', true, true);
  }

  /**
   * Returns the tokens of a text. Rejects with ERR_INVALID_ARGUMENT if `text` is not a string,
   * ERR_INVALID_CHECKPOINT if the tokenizer fails, takes too long (10 s and 0.1 s for each 1,000
   * characters) or takes too much memory. It encodes in another process, so the event loop runs on.
   */
  async encode(text: string, options: EncodeOptions = {}): Promise<number[]> {
    if (typeof text !== 'string') throw invalid('text', 'a string', text);
    checkObject('options', options);
    const { addSpecialTokens = true, parseSpecial = true } = options;
    checkBoolean('addSpecialTokens', addSpecialTokens);
    checkBoolean('parseSpecial', parseSpecial);
    const tokens = await this.#encode(text, addSpecialTokens, parseSpecial);
    if (!addSpecialTokens || this.bosTokenId === null) return tokens;
    const bos = this.bosTokenId;
    if (this.#prependsBos && tokens[0] !== bos) tokens.unshift(bos);
    else if (tokens[0] === bos && tokens[1] === bos) tokens.shift();
    return tokens;
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
    const stream = this.stream(options);
    return Array.from(tokens, (token) => stream.push(token)).join('') + stream.flush();
  }

  /**
   * Creates an incremental decoder that never splits a character. Its `push` throws
   * ERR_INVALID_ARGUMENT unless the token is an integer of at least 0.
   */
  stream(options: StreamOptions = {}): TokenStream {
    checkObject('options', options);
    const { skipSpecialTokens = true, continued = false } = options;
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
   * tokens, so encode it with `addSpecialTokens: false`. Throws ERR_UNSUPPORTED_MODEL if the
   * checkpoint has no template or the template uses a construct that is not supported,
   * ERR_INVALID_ARGUMENT if the template rejects the messages, ERR_INVALID_CHECKPOINT if the
   * template has a syntax error or exceeds a limit.
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    checkMessages(messages);
    checkObject('options', options);
    if (this.#chatTemplate === null) {
      throw unsupportedModel(
        this.#directory,
        'the model has no chat template (chat_template.jinja, or chat_template in ' +
          'tokenizer_config.json): pass the prompt as text',
      );
    }
    return this.#chatTemplate.render(messages, options);
  }

  /** @internal */
  [endProcess](): void {
    this.#process.close();
  }

  #encode(text: string, addSpecialTokens: boolean, parseSpecial: boolean): Promise<number[]> {
    const controls = this.#controls;
    return this.#process.encode({ text, addSpecialTokens, parseSpecial, controls });
  }

  #piece(token: number): string | undefined {
    const start = this.#ranges[2 * token];
    const end = this.#ranges[2 * token + 1];
    if (start === undefined || end === undefined || start > end) return undefined;
    this.#pieces[token] ??= this.#text.toString('utf8', start, end);
    return this.#pieces[token];
  }
}

/** Null if the directory has no vocabulary, ERR_UNSUPPORTED_MODEL if it is in another format. */
async function withoutTokenizerJson(directory: string): Promise<null> {
  const entries: string[] = await readdir(directory).catch(() => []);
  const other = OTHER_VOCABULARIES.find((name) => entries.includes(name));
  if (other === undefined) return null;
  throw unsupportedModel(
    join(directory, other),
    'the vocabulary is not in tokenizer.json: write that file with Python, ' +
      'transformers.AutoTokenizer.from_pretrained(directory).save_pretrained(directory)',
  );
}
