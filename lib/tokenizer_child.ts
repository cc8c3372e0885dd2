// The process that runs the Rust library `tokenizers`. lib/tokenizer_process.ts starts it and says
// why the library runs in a process of its own.

import { randomBytes } from 'node:crypto';
import { Worker } from 'node:worker_threads';
import type { Tokenizer as Encoder } from 'tokenizers';

/** What the process reads from stdin, in bytes. Of `config` and `template` there may be none. */
export interface ChildFiles {
  tokenizer: number;
  config: number;
  template: number;
}

/** The arguments of the process, as JSON. */
export interface ChildSettings {
  files: ChildFiles;
  loadLimitMs: number;
  memoryLimit: number;
}

export interface AddedToken {
  id: number;
  content: string;
  special: boolean;
}

/** What the other process needs to know of a tokenizer. */
export interface Loaded {
  /** UTF-8 of all token strings. */
  text: Uint8Array;
  /** Start and end of token `id` in `text`, at 2 * id. An id without a token has start > end. */
  ranges: Uint32Array;
  /** `decoder` of tokenizer.json. */
  decoder: unknown;
  addedTokens: AddedToken[];
  /** `*_token`, `add_bos_token` and `chat_template` of tokenizer_config.json. */
  config: Record<string, unknown>;
}

export interface EncodeRequest {
  id: number;
  text: string;
  addSpecialTokens: boolean;
  /**
   * Boundaries of the spans in which no control token is parsed: start, end, start, end ... in
   * UTF-16 code units. Control tokens are the special tokens, and the other added tokens that the
   * chat template contains.
   */
  literalSpans: readonly number[];
  limitMs: number;
}

/** `unavailable`: the library cannot be loaded here. `unsupported`: a part of an unknown type. */
export type ProblemKind = 'unavailable' | 'unsupported' | 'malformed' | 'config';

export type ChildAnswer =
  | { loaded: Loaded }
  | { problem: { kind: ProblemKind; message: string } }
  | { id: number; tokens: Uint32Array; isLast: boolean }
  | { id: number; error: string };

class Problem extends Error {
  readonly kind: ProblemKind;

  constructor(kind: ProblemKind, message: string) {
    super(message);
    this.kind = kind;
  }
}

type Json = Record<string, unknown>;

// Far more tokens than any vocabulary has. The tables are as long as the largest id.
const MAX_TOKENS = 2 ** 24;
// Tokens are sent in parts, so that the other process never spends long on one message.
const TOKENS_PER_MESSAGE = 16_384;
// Encoding a text takes at most about this many bytes for each code unit.
const ENCODING_BYTES = 600;

const TYPES: Record<string, readonly string[]> = {
  model: ['BPE', 'Unigram', 'WordPiece', 'WordLevel'],
  normalizer: [
    ...['BertNormalizer', 'Strip', 'StripAccents', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Sequence'],
    ...['Lowercase', 'Nmt', 'Precompiled', 'Replace', 'Prepend', 'ByteLevel'],
  ],
  pre_tokenizer: [
    ...['BertPreTokenizer', 'ByteLevel', 'Delimiter', 'CharDelimiterSplit', 'Metaspace'],
    ...['Whitespace', 'WhitespaceSplit', 'Sequence', 'Split', 'Punctuation', 'Digits'],
    ...['UnicodeScripts', 'FixedLength'],
  ],
  post_processor: [
    ...['RobertaProcessing', 'BertProcessing', 'ByteLevel', 'TemplateProcessing', 'Sequence'],
  ],
  decoder: [
    ...['BPEDecoder', 'ByteLevel', 'WordPiece', 'Metaspace', 'CTC', 'Sequence', 'Replace', 'Fuse'],
    ...['Strip', 'ByteFallback'],
  ],
};

// A thread that ends the process when it takes too long or too much memory, or when the process
// that started it is gone. The other thread cannot: it may be inside the library. Shared numbers:
// the deadline in ms since 1970, 0 if idle, and the limit of resident memory in bytes.
const WATCHDOG = `
const { writeSync } = require('node:fs');
const { workerData: { shared, parent } } = require('node:worker_threads');
const [state, numbers] = [new Int32Array(shared, 0, 2), new Float64Array(shared, 8, 2)];
const end = (reason) => {
  writeSync(2, reason);
  process.kill(process.pid, 'SIGKILL');
};
for (;;) {
  Atomics.wait(state, 0, 0);
  if (Date.now() > numbers[0]) end('\\nlimit: time\\n');
  if (process.memoryUsage.rss() > numbers[1]) end('\\nlimit: memory\\n');
  if (process.ppid !== parent) end('');
  Atomics.wait(state, 1, 0, 10);
}`;

class Watchdog {
  readonly #busy: Int32Array;
  readonly #numbers: Float64Array;
  readonly #calls = new Set<{ deadline: number }>();

  constructor(memoryLimit: number) {
    const shared = new SharedArrayBuffer(24);
    this.#busy = new Int32Array(shared, 0, 2);
    this.#numbers = new Float64Array(shared, 8, 2);
    this.#numbers[1] = memoryLimit;
    const workerData = { shared, parent: process.ppid };
    // The code range is address space, by default 512 MB.
    const resourceLimits = { codeRangeSizeMb: 4 };
    new Worker(WATCHDOG, { eval: true, workerData, resourceLimits }).unref();
  }

  /** Allows a call `limitMs`, and `bytes` of memory more until it ends. */
  begin(limitMs: number, bytes: number): () => void {
    const deadline = Date.now() + limitMs;
    const call = { deadline };
    this.#calls.add(call);
    this.#numbers[1] = (this.#numbers[1] as number) + bytes;
    this.#set();
    return () => {
      this.#calls.delete(call);
      this.#numbers[1] = (this.#numbers[1] as number) - bytes;
      this.#set();
    };
  }

  get isIdle(): boolean {
    return this.#calls.size === 0;
  }

  #set(): void {
    this.#numbers[0] = Math.min(...[...this.#calls].map(({ deadline }) => deadline));
    Atomics.store(this.#busy, 0, this.isIdle ? 0 : 1);
    Atomics.notify(this.#busy, 0);
  }
}

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

function parse(kind: ProblemKind, bytes: Buffer): Json {
  let value: unknown;
  try {
    value = JSON.parse(bytes.toString('utf8'));
  } catch (error) {
    throw new Problem(kind, `not valid JSON: ${(error as Error).message}`);
  }
  if (isObject(value)) return value;
  throw new Problem(kind, 'not a JSON object');
}

/** Throws `unsupported` if a part has a type that the library does not have. */
function checkTypes(json: Json): void {
  const check = (what: string, part: unknown) => {
    const { type, ...rest } = (isObject(part) ? part : {}) as Json;
    if (typeof type === 'string' && !(TYPES[what] as string[]).includes(type)) {
      throw new Problem('unsupported', `a ${what} of type ${type} is not supported`);
    }
    for (const list of Object.values(rest)) {
      if (type === 'Sequence' && Array.isArray(list)) for (const step of list) check(what, step);
    }
  };
  for (const what of Object.keys(TYPES)) check(what, json[what]);
}

/** A token in tokenizer_config.json is its text, or an object with the text in `content`. */
function tokenText(token: unknown): string | undefined {
  const text = isObject(token) ? token.content : token;
  return typeof text === 'string' ? text : undefined;
}

/** The special tokens that tokenizer_config.json names: bos_token and so on. */
function namedTokens(config: Json): unknown[] {
  const names = Object.keys(config).filter((name) => name.endsWith('_token'));
  const extra = config.additional_special_tokens ?? config.extra_special_tokens;
  return [
    ...names.map((name) => config[name]),
    ...(Array.isArray(extra) ? extra : isObject(extra) ? Object.values(extra) : []),
  ].filter((token) => tokenText(token));
}

/** A field of an added token that is absent has the library's default. */
function complete(token: Json): Json {
  const flags = { single_word: false, lstrip: false, rstrip: false };
  return { ...flags, special: false, normalized: token.special !== true, ...token };
}

/**
 * The tokens of tokenizer_config.json that tokenizer.json lacks, in the order in which transformers
 * adds them: `added_tokens_decoder` by id, then the named special tokens.
 */
function missingTokens(added: Json[], config: Json): Json[] {
  const known = new Map(added.map((token) => [token.content, complete(token)]));
  const special = namedTokens(config);
  const specialTexts = new Set(special.map(tokenText));
  const flags = ['single_word', 'lstrip', 'rstrip', 'normalized', 'special'] as const;
  const byId = isObject(config.added_tokens_decoder) ? config.added_tokens_decoder : {};
  const missing: Json[] = [];
  for (const [, token] of Object.entries(byId).sort(([a], [b]) => Number(a) - Number(b))) {
    const text = tokenText(token);
    if (text === undefined) {
      throw new Problem('config', 'added_tokens_decoder has a token without content');
    }
    const whole = complete(isObject(token) ? token : { content: text });
    const existing = known.get(text);
    if (existing && flags.every((flag) => existing[flag] === whole[flag])) continue;
    if (specialTexts.has(text)) whole.special = true;
    missing.push(whole);
    known.set(text, whole);
  }
  for (const token of special) {
    const content = tokenText(token) as string;
    if (known.has(content)) continue;
    const whole = complete({ ...(isObject(token) ? token : {}), content, special: true });
    missing.push(whole);
    known.set(content, whole);
  }
  return missing;
}

class Host {
  readonly #library: typeof import('tokenizers');
  readonly #json: Json;
  readonly #encoder: Encoder;
  readonly #controls: readonly string[];
  /** Contents of all added tokens. */
  readonly #added: readonly string[];
  readonly #hasNfc: boolean;
  readonly #hasLiteralControls: boolean;
  #renamed: Renamed | undefined;
  readonly loaded: Loaded;

  constructor(tokenizer: Buffer, configFile: Buffer, templateFile: Buffer) {
    try {
      this.#library = require('tokenizers');
    } catch (error) {
      throw new Problem('unavailable', (error as Error).message);
    }
    const json = parse('malformed', tokenizer);
    const config = configFile.length > 0 ? parse('config', configFile) : {};
    checkTypes(json);
    const added = (json.added_tokens ?? []) as Json[];
    if (!Array.isArray(added) || !added.every(isObject)) {
      throw new Problem('malformed', 'added_tokens is not a list of objects');
    }
    if (!isObject(json.model) || typeof json.model.vocab !== 'object') {
      throw new Problem('malformed', 'model.vocab is missing');
    }
    // A later entry with the same content changes the flags of an earlier one.
    json.added_tokens = [...added.map(complete), ...missingTokens(added, config)].map(
      (token, id) => ({ id, ...token }),
    );
    this.#json = json;
    this.#encoder = this.#build(json);
    this.loaded = this.#describe(config);
    this.#controls = controlTokens(this.loaded, config, templateFile.toString('utf8'));
    this.#added = this.loaded.addedTokens.map(({ content }) => content);
    this.#hasNfc = stepsOf(json.normalizer).some(({ type }) => type === 'NFC');
    this.#hasLiteralControls = areLiteral(this.#added, json);
  }

  #build(json: Json): Encoder {
    let encoder: Encoder;
    try {
      encoder = this.#library.Tokenizer.fromString(JSON.stringify(json));
    } catch (error) {
      const { message } = error as Error;
      throw new Problem(/unknown variant/.test(message) ? 'unsupported' : 'malformed', message);
    }
    // transformers does neither unless asked to.
    encoder.disableTruncation();
    encoder.disablePadding();
    return encoder;
  }

  #describe(config: Json): Loaded {
    const ids = Object.entries(this.#encoder.getVocab(true));
    const count = 1 + ids.reduce((largest, [, id]) => Math.max(largest, id), -1);
    if (count > MAX_TOKENS) {
      const [piece, id] = ids.find(([, id]) => id === count - 1) as [string, number];
      throw new Problem(
        'malformed',
        `token ${JSON.stringify(piece)} has the id ${id}, more than ${MAX_TOKENS - 1}`,
      );
    }
    const ranges = new Uint32Array(2 * count);
    const parts: Buffer[] = [];
    let end = 0;
    for (let id = 0; id < count; id++) {
      const piece = this.#encoder.idToToken(id);
      const bytes = piece === null ? null : Buffer.from(piece);
      ranges[2 * id] = bytes === null ? end + 1 : end;
      end += bytes?.length ?? 0;
      ranges[2 * id + 1] = end;
      if (bytes !== null) parts.push(bytes);
    }
    // The last entry with a content counts.
    const special = new Map<string, boolean>();
    for (const { content, special: flag } of this.#json.added_tokens as Json[]) {
      special.set(content as string, special.get(content as string) || flag === true);
    }
    const addedTokens = [...special].flatMap(([content, special]) => {
      const id = content === '' ? null : this.#encoder.tokenToId(content);
      return id === null ? [] : [{ id, content, special }];
    });
    const texts = Object.entries(config)
      .filter(([name]) => name.endsWith('_token'))
      .flatMap(([name, token]) => (tokenText(token) ? [[name, tokenText(token)]] : []));
    return {
      text: Buffer.concat(parts),
      ranges,
      decoder: this.#json.decoder ?? null,
      addedTokens,
      config: {
        ...Object.fromEntries(texts),
        add_bos_token: config.add_bos_token === true,
        chat_template: config.chat_template,
      },
    };
  }

  async encode(request: EncodeRequest): Promise<Uint32Array> {
    const { text, addSpecialTokens, literalSpans } = request;
    const options = { addSpecialTokens };
    const controls = this.#controlsOf(text, literalSpans);
    const mayForge = literalSpans.length > 0 && this.#mayForge(text, literalSpans, controls);
    const encoding = mayForge
      ? await this.#encodeRenamed(text, literalSpans, controls, options)
      : await this.#encoder.encode(text, null, options);
    return Uint32Array.from(encoding.getIds());
  }

  /** The control tokens, and the other added tokens in the text outside the spans. */
  #controlsOf(text: string, spans: readonly number[]): readonly string[] {
    if (spans.length === 0) return this.#controls;
    const parsed = partsOf(text, spans)
      .filter((_, i) => i % 2 === 0)
      .join('\ud800'); // no token contains half a character
    const known = new Set(this.#controls);
    const others = this.#added.filter(
      (content) => !known.has(content) && /\S/.test(content) && parsed.includes(content),
    );
    return [...this.#controls, ...others];
  }

  /** Whether a control token may arise from text that is at least in part in the spans. */
  #mayForge(text: string, spans: readonly number[], controls: readonly string[]): boolean {
    if (!this.#hasLiteralControls) return true;
    if (this.#hasNfc && text.normalize('NFC') !== text) return true;
    return controls.some((content) => {
      let span = 0;
      for (let at = text.indexOf(content); at >= 0; at = text.indexOf(content, at + 1)) {
        while (span < spans.length && (spans[span + 1] as number) <= at) span += 2;
        if (span >= spans.length) return false;
        if ((spans[span] as number) < at + content.length) return true;
      }
      return false;
    });
  }

  /** Encodes the control tokens outside the spans by their random names. */
  #encodeRenamed(
    text: string,
    spans: readonly number[],
    controls: readonly string[],
    options: { addSpecialTokens: boolean },
  ) {
    const isCurrent = this.#renamed?.names.size === controls.length;
    if (!isCurrent || !controls.every((content) => this.#renamed?.names.has(content))) {
      this.#renamed = this.#rename(controls);
    }
    const { encoder, names, pattern, singleWords } = this.#renamed as Renamed;
    const parts = partsOf(text, spans).map((part, i) => {
      if (i % 2 === 1) return part;
      return part.replace(pattern, (content, at: number) => {
        const isText = singleWords.has(content) && isInWord(part, at, at + content.length);
        return isText ? content : (names.get(content) as string);
      });
    });
    return encoder.encode(parts.join(''), null, options);
  }

  /**
   * The tokenizer with the control tokens under random names, so that no text of a user contains
   * them. Their ids do not change. The library's own switch for this is not part of its Node API,
   * and does not prevent a model such as Unigram from using the token as a piece. The names are
   * always matched as they are, before any normalizer, so that none remains in the text.
   */
  #rename(controls: readonly string[]): Renamed {
    const secret = randomBytes(16).toString('hex');
    // All names have the same length, so none is the beginning of another.
    const names = new Map(
      controls.map((content, i) => [content, `${secret}${String(i).padStart(8, '0')}`]),
    );
    const rename = <T>(content: T): T | string => names.get(content as string) ?? content;
    const model = { ...(this.#json.model as Json) };
    model.vocab = Array.isArray(model.vocab)
      ? model.vocab.map((entry) => [rename(entry[0]), entry[1]])
      : Object.fromEntries(
          Object.entries(model.vocab as Json).map(([piece, id]) => [rename(piece), id]),
        );
    model.unk_token = rename(model.unk_token);
    const prefix = String(model.continuing_subword_prefix ?? '');
    if (Array.isArray(model.merges)) {
      model.merges = model.merges.filter((merge: string | string[]) => {
        const [left = '', right = ''] = typeof merge === 'string' ? merge.split(' ') : merge;
        const joined = left + (right.startsWith(prefix) ? right.slice(prefix.length) : right);
        return ![left, right, joined].some((piece) => names.has(piece));
      });
    }
    const added_tokens = (this.#json.added_tokens as Json[]).map((token) =>
      names.has(token.content as string)
        ? { ...token, content: rename(token.content), normalized: false, single_word: false }
        : token,
    );
    const contents = [...controls].sort((a, b) => b.length - a.length).map(escapeRegExp);
    const words = (this.#json.added_tokens as Json[]).filter((token) => token.single_word === true);
    return {
      encoder: this.#build({ ...this.#json, model, added_tokens }),
      names,
      pattern: new RegExp(contents.join('|') || '(?!)', 'g'),
      singleWords: new Set(words.map((token) => token.content as string)),
    };
  }
}

interface Renamed {
  encoder: Encoder;
  /** The random names of the control tokens. */
  names: Map<string, string>;
  /** Matches the control tokens, the longest first. */
  pattern: RegExp;
  /** Contents of the added tokens that are not parsed within a word. */
  singleWords: Set<string>;
}

/** Whether a character of a word is beside text.slice(start, end). */
function isInWord(text: string, start: number, end: number): boolean {
  // Two code units, in case the character has that many.
  const before = text.slice(Math.max(start - 2, 0), start);
  return /[\p{L}\p{N}_]$/u.test(before) || /^[\p{L}\p{N}_]/u.test(text.slice(end, end + 2));
}

const escapeRegExp = (text: string) => text.replace(/[\\^$.*+?()[\]{}|/-]/g, '\\$&');

/** The text outside, inside, outside ... the spans. */
function partsOf(text: string, spans: readonly number[]): string[] {
  const bounds = [0, ...spans, text.length];
  return bounds.slice(1).map((end, i) => text.slice(bounds[i], end));
}

/**
 * Contents of the special tokens, of the tokens that tokenizer_config.json names, of the other added
 * tokens that the chat template contains, and of those in the form <|name|>.
 */
function controlTokens(loaded: Loaded, config: Json, templateFile: string): string[] {
  const { chat_template: template } = config;
  const entries = Array.isArray(template) ? template.map((entry) => entry?.template) : [template];
  const templates = [templateFile, ...entries].filter((entry) => typeof entry === 'string');
  const named = new Set(namedTokens(config).map(tokenText));
  const isControl = ({ content, special }: AddedToken) =>
    special ||
    named.has(content) ||
    /^<[|\uff5c].*[|\uff5c]>$/s.test(content) ||
    (/\S/.test(content) && templates.some((source) => source.includes(content)));
  return loaded.addedTokens.filter(isControl).map(({ content }) => content);
}

/** The steps of a part of tokenizer.json that may be a sequence. */
function stepsOf(part: unknown): Json[] {
  if (!isObject(part)) return [];
  const list = part.normalizers ?? part.pretokenizers;
  return part.type === 'Sequence' && Array.isArray(list) ? list.flatMap(stepsOf) : [part];
}

/**
 * Whether only a text that contains the content of an added token, after NFC if that is a step,
 * gives that token. False if another normalizer or the alphabet of a model may turn other text into
 * it.
 */
function areLiteral(contents: readonly string[], json: Json): boolean {
  const normalizers = stepsOf(json.normalizer);
  const isKnown = ({ type, prepend, pattern, content }: Json) =>
    type === 'NFC' ||
    (type === 'Prepend' && prepend === '\u2581') ||
    (type === 'Replace' && isObject(pattern) && pattern.String === ' ' && content === '\u2581');
  if (!normalizers.every(isKnown)) return false;
  const spaces = stepsOf(json.pre_tokenizer).filter(({ type }) => type === 'Metaspace');
  if (spaces.some(({ replacement }) => replacement !== '\u2581')) return false;
  const replacesSpace = spaces.length > 0 || normalizers.some(({ type }) => type !== 'NFC');
  // U+FFFD replaces a lone surrogate. Up to U+0143 is the alphabet of ByteLevel.
  return !contents.some(
    (content) =>
      /[\u007f-\u0143\ufffd]/.test(content) || (replacesSpace && content.includes('\u2581')),
  );
}

/** Resolves when the message is written. */
function answer(message: ChildAnswer): Promise<void> {
  return new Promise((resolve) => process.send?.(message, () => resolve()));
}

async function main(settings: ChildSettings): Promise<void> {
  const watchdog = new Watchdog(settings.memoryLimit);
  const end = watchdog.begin(settings.loadLimitMs, 0);
  process.on('disconnect', () => {
    // process.exit waits for calls inside the library.
    if (watchdog.isIdle) process.exit();
    process.kill(process.pid, 'SIGKILL');
  });
  const chunks: Buffer[] = [];
  for await (const chunk of process.stdin) chunks.push(chunk);
  const bytes = Buffer.concat(chunks);
  const { tokenizer, config } = settings.files;
  let host: Host;
  try {
    host = new Host(
      bytes.subarray(0, tokenizer),
      bytes.subarray(tokenizer, tokenizer + config),
      bytes.subarray(tokenizer + config),
    );
  } catch (error) {
    const kind = error instanceof Problem ? error.kind : 'malformed';
    end();
    return await answer({ problem: { kind, message: (error as Error).message } });
  }
  process.on('message', async (request: EncodeRequest) => {
    const { id, text, limitMs } = request;
    const end = watchdog.begin(limitMs, text.length * ENCODING_BYTES);
    try {
      const tokens = await host.encode(request);
      for (let start = 0, isLast = false; !isLast; start += TOKENS_PER_MESSAGE) {
        const end = start + TOKENS_PER_MESSAGE;
        isLast = end >= tokens.length;
        await answer({ id, tokens: tokens.slice(start, end), isLast });
      }
    } catch (error) {
      void answer({ id, error: (error as Error).message });
    } finally {
      end();
    }
  });
  await answer({ loaded: host.loaded });
  end();
}

void main(JSON.parse(process.argv[2] as string) as ChildSettings);
