import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setImmediate as nextTick } from 'node:timers/promises';
import { Tokenizer as Encoder } from '@huggingface/tokenizers';
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
  invalid,
  invalidCheckpoint,
  unsupportedModel,
} from './errors';
import { withTimeLimit } from './time_limit';

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

type Json = Record<string, unknown>;

/** Contents of the tokenizer files of a checkpoint. */
interface TokenizerFiles {
  directory: string;
  encoder: Encoder;
  /** Token strings by id. An id may have none. */
  pieces: (string | undefined)[];
  decoderConfig: DecoderConfig | null;
  /** tokenizer_config.json. */
  config: Json;
  /** chat_template.jinja. */
  jinjaFile: string | null;
}

// Far more tokens than any vocabulary has. The tables are as long as the largest id.
const MAX_TOKENS = 2 ** 24;

/**
 * Converts text to tokens and back, as `tokenizer.json` and `tokenizer_config.json` of a checkpoint
 * define. Decoding returns the text of the tokens byte for byte: it does not clean up spaces (` .`
 * to `.`), which some tokenizer_config.json request.
 */
export class Tokenizer {
  readonly #encoder: Encoder;
  readonly #decoderConfig: DecoderConfig | null;
  readonly #pieces: (string | undefined)[];
  readonly #literals: Set<string>;
  readonly #specialTokens: Set<number>;
  readonly #prependsBos: boolean;
  readonly #chatTemplate: ChatTemplate | null;
  readonly #directory: string;

  /** The largest token id plus one. */
  readonly vocabSize: number;
  /** Id of `bos_token` in tokenizer_config.json, or null. */
  readonly bosTokenId: number | null;
  /** Id of `eos_token` in tokenizer_config.json, or null. */
  readonly eosTokenId: number | null;

  private constructor(files: TokenizerFiles) {
    const { directory, encoder, pieces, decoderConfig, config, jinjaFile } = files;
    this.#directory = directory;
    this.#encoder = encoder;
    this.#pieces = pieces;
    this.#decoderConfig = decoderConfig;
    const added = [...encoder.get_added_tokens_decoder().values()];
    this.#literals = new Set(added.map((token) => token.content));
    this.#specialTokens = new Set(added.filter(({ special }) => special).map(({ id }) => id));
    this.vocabSize = pieces.length;
    const names = ['bos_token', 'eos_token', 'unk_token', 'pad_token'];
    const variables = Object.fromEntries(
      names.map((name) => [name, tokenText(config[name])]).filter(([, text]) => text),
    );
    this.bosTokenId = encoder.token_to_id(variables.bos_token ?? '') ?? null;
    this.eosTokenId = encoder.token_to_id(variables.eos_token ?? '') ?? null;
    for (const id of [this.bosTokenId, this.eosTokenId]) {
      if (id !== null) this.#specialTokens.add(id);
    }
    // Older checkpoints have add_bos_token without a post_processor that adds the token.
    this.#prependsBos =
      config.add_bos_token === true &&
      this.bosTokenId !== null &&
      this.#encode('', true)[0] !== this.bosTokenId;
    const source = chatTemplateSource(config, jinjaFile);
    this.#chatTemplate = source === null ? null : new ChatTemplate(directory, source, variables);
    // If the encoder cannot encode, this throws while the caller can name the file.
    this.#encode('a 1.\u00e9', true);
  }

  /**
   * Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` of a directory; the
   * last two are optional. Resolves to null if there is no tokenizer.json. Rejects with
   * ERR_INVALID_CHECKPOINT (the message names the file) if a file is malformed,
   * ERR_UNSUPPORTED_MODEL if a part of the tokenizer has an unknown type, ERR_INVALID_ARGUMENT if
   * `directory` is not a string.
   */
  static async fromDirectory(directory: string): Promise<Tokenizer | null> {
    if (typeof directory !== 'string') throw invalid('directory', 'a path', directory);
    const file = join(directory, 'tokenizer.json');
    const json = await readJson(file);
    if (json === null) return null;
    const config = (await readJson(join(directory, 'tokenizer_config.json'))) ?? {};
    const jinjaFile = await readText(join(directory, 'chat_template.jinja'));
    json.added_tokens ??= [];
    // Each step takes a while for a large vocabulary, so the event loop runs between the steps.
    try {
      await nextTick();
      const decoderConfig = (json.decoder as DecoderConfig | null | undefined) ?? null;
      // Created here only to reject unknown types.
      createDecoder(decoderConfig, { literals: new Set(), continued: false });
      // Before the encoder, which would allocate tables for any id.
      const pieces = readPieces(json);
      await nextTick();
      // The encoder requires that every part is present; null means none.
      const parts = {
        ...{ normalizer: null, pre_tokenizer: null, post_processor: null, decoder: null },
        ...json,
      };
      const encoder = new Encoder(parts, { ...config, clean_up_tokenization_spaces: false });
      await nextTick();
      return new Tokenizer({ directory, encoder, pieces, decoderConfig, config, jinjaFile });
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === 'ERR_OUT_OF_MEMORY') throw error;
      // The encoder reports a model, normalizer or pre-tokenizer of an unknown type in this way.
      const isUnknownType = /^Unknown \w+ type: \w/.test(message);
      throw isUnknownType || code === 'ERR_UNSUPPORTED_MODEL'
        ? unsupportedModel(file, message)
        : invalidCheckpoint(file, `malformed: ${message}`);
    }
  }

  /**
   * Returns the tokens of a text. By default, `addSpecialTokens` adds the special tokens that the
   * checkpoint puts around a text, such as `<|begin_of_text|>`. Names of special tokens in the text
   * become these tokens. Throws ERR_INVALID_ARGUMENT if `text` is not a string.
   */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    if (typeof text !== 'string') throw invalid('text', 'a string', text);
    checkObject('options', options);
    const { addSpecialTokens = true } = options;
    checkBoolean('addSpecialTokens', addSpecialTokens);
    const tokens = this.#encode(text, addSpecialTokens);
    const prependsBos = addSpecialTokens && this.#prependsBos;
    return prependsBos ? [this.bosTokenId as number, ...tokens] : tokens;
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
    const decoder = createDecoder(this.#decoderConfig, { literals: this.#literals, continued });
    return {
      push: (token) => {
        checkInteger('token', token, 0);
        const piece = this.#pieces[token];
        const isSkipped = skipSpecialTokens && this.#specialTokens.has(token);
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

  #encode(text: string, addSpecialTokens: boolean): number[] {
    // A regular expression of the tokenizer may never end.
    const limit = 10_000 + Math.ceil(text.length / 10);
    const { ids }: { ids: (number | undefined)[] } = withTimeLimit(
      `${this.#directory}: the tokenizer`,
      limit,
      () => this.#encoder.encode(text, { add_special_tokens: addSpecialTokens }),
    );
    // An id is undefined if the vocabulary has neither the piece nor an unk_token. It is dropped.
    const tokens = ids.filter((id) => id !== undefined);
    const isToken = (id: number) => Number.isInteger(id) && id >= 0 && id < this.vocabSize;
    const wrong = tokens.find((id) => !isToken(id));
    if (wrong === undefined) return tokens;
    throw invalidCheckpoint(
      this.#directory,
      `the tokenizer returned ${wrong}, not an integer from 0 to ${this.vocabSize - 1}`,
    );
  }
}

/**
 * Token strings by id, from `model.vocab` ({ piece: id }, or [[piece, score]] for Unigram) and
 * `added_tokens`.
 */
function readPieces(json: Json): (string | undefined)[] {
  const vocab = (json.model as Json | null | undefined)?.vocab;
  if (typeof vocab !== 'object' || vocab === null) throw new TypeError('model.vocab is missing');
  const pieces: (string | undefined)[] = [];
  const put = (piece: unknown, id: unknown) => {
    if (typeof piece !== 'string') {
      throw new TypeError(`the piece of token ${String(id)} is not a string`);
    }
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= MAX_TOKENS) {
      const name = JSON.stringify(piece);
      throw new RangeError(
        `token ${name} has the id ${String(id)}, not an integer from 0 to ${MAX_TOKENS - 1}`,
      );
    }
    pieces[id] = piece;
  };
  const entries = Array.isArray(vocab)
    ? vocab.map((entry, id) => [entry?.[0], id])
    : Object.entries(vocab);
  for (const [piece, id] of entries) put(piece, id);
  for (const token of json.added_tokens as Json[]) put(token?.content, token?.id);
  return pieces;
}

/** A token in tokenizer_config.json is its text, or an object with the text in `content`. */
function tokenText(token: unknown): string | undefined {
  const text = typeof token === 'object' && token !== null ? (token as Json).content : token;
  return typeof text === 'string' ? text : undefined;
}

/** Null if the file does not exist. Rejects with ERR_INVALID_CHECKPOINT if it cannot be read. */
async function readText(file: string): Promise<string | null> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return null;
    throw invalidCheckpoint(file, `cannot be read: ${message}`);
  }
}

/** Like `readText`. Also rejects with ERR_INVALID_CHECKPOINT if the file is not a JSON object. */
async function readJson(file: string): Promise<Json | null> {
  const text = await readText(file);
  if (text === null) return null;
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalidCheckpoint(file, `not valid JSON: ${(error as Error).message}`);
  }
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Json;
  throw invalidCheckpoint(file, 'not a JSON object');
}
