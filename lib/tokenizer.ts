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
import { checkBoolean, checkInteger, checkObject, DiffqkvError, invalid } from './errors';
import { withTimeLimit } from './time_limit';
import { type Json, readJson, readPieces, readText, tokenText } from './tokenizer_files';

/** Decodes token by token. All that `push` and `flush` return, joined, is what `decode` gives for all the tokens. */
export interface TokenStream {
  /** The text that this token settles: '' while a character is incomplete. Never part of a character. */
  push(token: number): string;
  /** The rest, at the end: U+FFFD where a character stayed incomplete. */
  flush(): string;
}

/** How {@link Tokenizer.decode} treats special tokens. */
export interface DecodeOptions {
  /** Leave out the special tokens, such as `<|end_of_text|>`. Default true. */
  skipSpecialTokens?: boolean;
}

/** How {@link Tokenizer.stream} decodes. */
export interface StreamOptions extends DecodeOptions {
  /** The tokens go on from an earlier text: a space that opens them stays, where SentencePiece would drop it. Default false. */
  continued?: boolean;
}

/**
 * Text to tokens and back, by a checkpoint's `tokenizer.json` and `tokenizer_config.json`. Decoding gives the text that
 * the tokens stand for, byte for byte: the clean-up of spaces which some tokenizer_config.json ask for (` .` to `.`)
 * would change it, and isn't done.
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

  /** One more than the largest token id. */
  readonly vocabSize: number;
  /** The id of `bos_token` in tokenizer_config.json; null where it names none. */
  readonly bosTokenId: number | null;
  /** The id of `eos_token` in tokenizer_config.json; null where it names none. */
  readonly eosTokenId: number | null;

  private constructor(
    directory: string,
    decoderConfig: DecoderConfig | null,
    pieces: (string | undefined)[],
    encoder: Encoder,
    config: Json,
    jinjaFile: string | null,
  ) {
    this.#directory = directory;
    this.#decoderConfig = decoderConfig;
    this.#pieces = pieces;
    this.#encoder = encoder;
    const added = [...this.#encoder.get_added_tokens_decoder().values()];
    this.#literals = new Set(added.map((token) => token.content));
    this.#specialTokens = new Set(added.filter((token) => token.special).map((token) => token.id));
    this.vocabSize = this.#pieces.length;
    const names = ['bos_token', 'eos_token', 'unk_token', 'pad_token'];
    const variables = Object.fromEntries(
      names.map((name) => [name, tokenText(config[name])]).filter(([, text]) => text),
    );
    this.bosTokenId = this.#encoder.token_to_id(variables.bos_token ?? '') ?? null;
    this.eosTokenId = this.#encoder.token_to_id(variables.eos_token ?? '') ?? null;
    for (const id of [this.bosTokenId, this.eosTokenId])
      if (id !== null) this.#specialTokens.add(id);
    // Older checkpoints leave the BOS to the code around the tokenizer: add_bos_token, but no post_processor that does it.
    this.#prependsBos =
      config.add_bos_token === true &&
      this.bosTokenId !== null &&
      this.#encode('', true)[0] !== this.bosTokenId;
    const source = chatTemplateSource(config, jinjaFile);
    this.#chatTemplate = source === null ? null : new ChatTemplate(directory, source, variables);
    this.#encode('a 1.\u00e9', true); // a tokenizer that cannot encode is found here, with its file's name
  }

  /**
   * Reads `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` (the last two may be absent) of a
   * directory. Resolves to null where there is no tokenizer.json. Rejects with ERR_INVALID_CHECKPOINT, naming the file,
   * where one is malformed, and ERR_UNSUPPORTED_MODEL where its decoder is of a kind that isn't known.
   */
  static async fromDirectory(directory: string): Promise<Tokenizer | null> {
    if (typeof directory !== 'string') throw invalid('directory', 'a path', directory);
    const file = join(directory, 'tokenizer.json');
    const json = await readJson(file);
    if (json === null) return null;
    const config = (await readJson(join(directory, 'tokenizer_config.json'))) ?? {};
    const jinjaFile = await readText(join(directory, 'chat_template.jinja'));
    json.added_tokens ??= [];
    // Building the tables takes a while, so the event loop runs between the steps.
    try {
      await nextTick();
      const decoderConfig = (json.decoder as DecoderConfig | null | undefined) ?? null;
      if (decoderConfig !== null) createDecoder(decoderConfig, new Set(), false); // throws if it is of an unknown kind
      const pieces = readPieces(json); // before the encoder, whose tables an absurd id would make absurdly long
      await nextTick();
      // The encoder requires every part: null if it is absent.
      const parts = {
        normalizer: null,
        pre_tokenizer: null,
        post_processor: null,
        decoder: null,
        ...json,
      };
      const encoder = new Encoder(parts, { ...config, clean_up_tokenization_spaces: false });
      await nextTick();
      return new Tokenizer(directory, decoderConfig, pieces, encoder, config, jinjaFile);
    } catch (error) {
      const { code, message } = error as { code?: string; message: string };
      if (code === 'ERR_OUT_OF_MEMORY') throw error;
      // The encoder says so too where it doesn't know a kind of model, normalizer or pre-tokenizer.
      const unknown = code === 'ERR_UNSUPPORTED_MODEL' || /^Unknown \w+ type: \w/.test(message);
      throw unknown
        ? new DiffqkvError('ERR_UNSUPPORTED_MODEL', `${file}: ${message}`)
        : new DiffqkvError('ERR_INVALID_CHECKPOINT', `${file} is malformed: ${message}`);
    }
  }

  /**
   * The tokens of a text. With `addSpecialTokens` (the default) what the checkpoint puts round a text is added, such as
   * `<|begin_of_text|>`. The names of special tokens within the text become those tokens. Throws ERR_INVALID_ARGUMENT where it is no string.
   */
  encode(text: string, options: { addSpecialTokens?: boolean } = {}): number[] {
    if (typeof text !== 'string') throw invalid('text', 'a string', text);
    checkObject('options', options);
    const { addSpecialTokens = true } = options;
    checkBoolean('addSpecialTokens', addSpecialTokens);
    const tokens = this.#encode(text, addSpecialTokens);
    return addSpecialTokens && this.#prependsBos ? [this.bosTokenId as number, ...tokens] : tokens;
  }

  /** The text of tokens. Ill-formed UTF-8 becomes U+FFFD; ids that the tokenizer doesn't know have no text. ERR_INVALID_ARGUMENT. */
  decode(tokens: ArrayLike<number>, options: DecodeOptions = {}): string {
    if (typeof tokens !== 'object' || tokens === null)
      throw invalid('tokens', 'an array of token ids', tokens);
    checkInteger('the length of tokens', tokens.length, 0, 2 ** 32 - 1);
    const stream = this.stream(options);
    return Array.from(tokens, (token) => stream.push(token)).join('') + stream.flush();
  }

  /** An incremental decoder that never splits a character. Its `push` throws ERR_INVALID_ARGUMENT for what is no integer of at least 0. */
  stream(options: StreamOptions = {}): TokenStream {
    checkObject('options', options);
    const { skipSpecialTokens = true, continued = false } = options;
    checkBoolean('skipSpecialTokens', skipSpecialTokens);
    checkBoolean('continued', continued);
    const decoder = createDecoder(this.#decoderConfig, this.#literals, continued);
    return {
      push: (token) => {
        checkInteger('token', token, 0);
        const piece = this.#pieces[token];
        return piece === undefined || (skipSpecialTokens && this.#specialTokens.has(token))
          ? ''
          : decoder.push(piece);
      },
      flush: () => decoder.flush(),
    };
  }

  /**
   * The text of a conversation by the checkpoint's chat template: encode it with `addSpecialTokens: false`, for the
   * template writes the special tokens itself. Throws ERR_UNSUPPORTED_MODEL where the checkpoint has no template, and
   * ERR_INVALID_ARGUMENT where the template refuses the messages.
   */
  applyChatTemplate(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    checkMessages(messages);
    checkObject('options', options);
    if (this.#chatTemplate === null) {
      throw new DiffqkvError(
        'ERR_UNSUPPORTED_MODEL',
        `the model in ${this.#directory} has no chat template (chat_template in tokenizer_config.json, or chat_template.jinja): give the prompt as text`,
      );
    }
    return this.#chatTemplate.render(messages, options);
  }

  #encode(text: string, addSpecialTokens: boolean): number[] {
    // Its patterns may be such as never come to an end.
    const limit = 10_000 + Math.ceil(text.length / 10);
    const { ids }: { ids: (number | undefined)[] } = withTimeLimit(
      `${this.#directory}: its tokenizer`,
      limit,
      () => this.#encoder.encode(text, { add_special_tokens: addSpecialTokens }),
    );
    // An id is undefined where the vocabulary lacks a piece and there is no unk_token to stand for it: nothing does.
    const tokens = ids.filter((id) => id !== undefined);
    const wrong = tokens.find((id) => !(Number.isInteger(id) && id >= 0 && id < this.vocabSize));
    if (wrong === undefined) return tokens;
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `${this.#directory}: its tokenizer gives ${wrong}, which is no token`,
    );
  }
}
