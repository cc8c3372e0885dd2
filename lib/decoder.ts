// Token strings ("pieces") to text, as the Rust library `tokenizers` decodes them. The decoder of a
// tokenizer.json is a chain of steps over a list of pieces. Here each step is a state machine that
// accepts one piece at a time and withholds only what a later piece may change. Decoding a whole
// list pushes all its pieces, so streamed text and whole text cannot differ.
//
// ByteLevel and Fuse join the list to one text. The steps behind them see that text as one piece.
// They receive it in parts, so each of them exists in a second form, for text.

import { compileDecoderPattern, type DecoderPattern } from './decoder_pattern';
import { DiffqkvError } from './errors';

/** One step of the chain, for a list of pieces or for the parts of a text. */
interface Step {
  /** Accepts the next piece. Returns the pieces that no later piece can change. */
  push(piece: string): string[];
  /** Returns the rest at the end. */
  flush(): string[];
}

/** Decodes pieces to text. */
export interface Decoder {
  /** Accepts the next piece. Returns the text that no later piece can change. */
  push(piece: string): string;
  /** Returns the rest at the end. */
  flush(): string;
}

/** The fields of the `decoder` object of tokenizer.json that are used here. */
export interface DecoderConfig {
  type: string;
  decoders?: DecoderConfig[];
  pattern?: { String?: string; Regex?: string };
  content?: string;
  start?: number;
  stop?: number;
  replacement?: string;
  prepend_scheme?: string;
  add_prefix_space?: boolean;
  prefix?: string;
  suffix?: string;
  cleanup?: boolean;
  pad_token?: string;
  word_delimiter_token?: string;
}

/** What the steps of a decoder need besides its config. */
export interface DecoderContext {
  /** The text continues an earlier one, so a space at its start is kept. */
  continued: boolean;
}

// A Replace step may lengthen a text by this factor, plus a constant. A malicious chain of Replace
// steps could fill the memory with one token.
const MAX_GROWTH = 64;
const MAX_EXTRA_LENGTH = 2 ** 20;

/** Limits what the Replace steps of a chain write, in relation to the text that was pushed. */
class Growth {
  #budget = MAX_EXTRA_LENGTH;

  grant(length: number): void {
    this.#budget += length * MAX_GROWTH;
  }

  spend(length: number): void {
    this.#budget -= length;
    if (this.#budget >= 0) return;
    throw new DiffqkvError(
      'ERR_INVALID_CHECKPOINT',
      `the decoder of tokenizer.json makes text more than ${MAX_GROWTH} times longer`,
    );
  }
}

const stateless = (map: (piece: string) => string): Step => ({
  push: (piece) => [map(piece)],
  flush: () => [],
});

/** Applies `map` to the whole text at the end, for steps that cannot decide earlier. */
function atEnd(map: (text: string) => string): Step {
  const parts: string[] = [];
  return {
    push(part) {
      parts.push(part);
      return [];
    },
    flush: () => [map(parts.join(''))],
  };
}

// The alphabet of GPT-2 writes each byte as one printable character: its Latin-1 character if that
// is printable, else the next unused one from U+0100.
const BYTE_OF_CHAR = new Map<string, number>();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable =
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  BYTE_OF_CHAR.set(String.fromCharCode(printable ? byte : next++), byte);
}

/** The bytes of a piece: of its UTF-8 if a character is not in the alphabet. */
function bytesOf(piece: string): Uint8Array {
  const bytes = Array.from(piece, (char) => BYTE_OF_CHAR.get(char));
  return bytes.includes(undefined) ? Buffer.from(piece) : Uint8Array.from(bytes as number[]);
}

/** Joins the bytes of all pieces. Ill-formed UTF-8 becomes U+FFFD as soon as it is known to be. */
function byteLevel(): Step {
  const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
  return {
    push: (piece) => [decoder.decode(bytesOf(piece), { stream: true })],
    flush: () => [decoder.decode()],
  };
}

const strictUtf8 = new TextDecoder('utf-8', { ignoreBOM: true, fatal: true });

/**
 * Decodes the byte tokens of SentencePiece, `<0x00>` to `<0xFF>`. A run of them is one piece. If
 * the run is not UTF-8, each of its bytes becomes U+FFFD, so a run is withheld until it ends.
 */
function byteFallback(): Step {
  let run: number[] = [];
  const endRun = (): string[] => {
    if (run.length === 0) return [];
    const bytes = Uint8Array.from(run);
    run = [];
    try {
      return [strictUtf8.decode(bytes)];
    } catch {
      return Array.from(bytes, () => '\ufffd');
    }
  };
  return {
    push(piece) {
      const byte = byteToken(piece);
      if (byte === null) return [...endRun(), piece];
      run.push(byte);
      return [];
    },
    flush: endRun,
  };
}

function byteToken(piece: string): number | null {
  const match = /^<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>$/.exec(piece);
  return match ? Number.parseInt(match[1] as string, 16) : null;
}

/** ByteFallback of one text: a text that is one byte token. */
function byteFallbackOfText(): Step {
  let head: string | null = '';
  return {
    push(part) {
      if (head === null) return [part];
      head += part;
      if (head.length <= '<0x00>'.length) return [];
      const text = head;
      head = null;
      return [text];
    },
    flush() {
      const byte = byteToken(head ?? '');
      if (byte === null) return [head ?? ''];
      return [byte < 0x80 ? String.fromCharCode(byte) : '\ufffd'];
    },
  };
}

function strip(text: string, content: string, start: number, stop: number): string {
  const step = content.length;
  if (step === 0) return text;
  let from = 0;
  for (let i = 0; i < start && text.startsWith(content, from); i++) from += step;
  let to = text.length;
  for (let i = 0; i < stop && to - step >= from && text.endsWith(content); i++) {
    if (!text.startsWith(content, to - step)) break;
    to -= step;
  }
  return text.slice(from, to);
}

/**
 * Strips `content` from the whole text: up to `start` times at its start and `stop` times at its
 * end. Withholds text that `stop` removes if no more text follows.
 */
function stripText(content: string, start: number, stop: number): Step {
  let leading = start;
  let tail = '';
  return {
    push(part) {
      const head = strip(part, content, leading, 0);
      leading = head === '' ? leading - part.length / content.length : 0;
      const text = tail + head;
      const settled = strip(text, content, 0, stop);
      tail = text.slice(settled.length);
      return [settled];
    },
    flush: () => [], // the withheld text is at the end, so it is stripped
  };
}

/** Applies `first` to the first piece of a list, `rest` to the others. */
function firstDiffers(
  first: (piece: string) => string,
  rest: (piece: string) => string,
  continued: boolean,
): Step {
  let isFirst = !continued;
  return stateless((piece) => {
    const map = isFirst ? first : rest;
    isFirst = false;
    return map(piece);
  });
}

/** Word ends as in GPT-1: replaces the suffix by a space, and by nothing in the last piece. */
function wordSuffix(suffix: string): Step {
  let last: string | null = null;
  const lastWithEnd = (end: string) => (last === null ? [] : [last.replaceAll(suffix, end)]);
  return {
    push(piece) {
      const text = lastWithEnd(' ');
      last = piece;
      return text;
    },
    flush: () => lastWithEnd(''),
  };
}

const patterns = new WeakMap<DecoderConfig, DecoderPattern>();

function patternOf(config: DecoderConfig): DecoderPattern {
  const pattern = patterns.get(config) ?? compileDecoderPattern(config.pattern?.Regex as string);
  patterns.set(config, pattern);
  return pattern;
}

type Replace = (text: string) => string;

function replaceString(from: string, to: string, growth: Growth): Replace {
  return (text) => {
    const parts = text.split(from);
    if (from === '') return emptyMatches(text, to, growth);
    growth.spend((parts.length - 1) * to.length);
    return parts.join(to);
  };
}

/** The empty string matches before each character and at the end. */
function emptyMatches(text: string, to: string, growth: Growth): string {
  const chars = Array.from(text);
  growth.spend((chars.length + 1) * to.length);
  return to + chars.map((char) => char + to).join('');
}

function replacePattern({ regex }: DecoderPattern, to: string, growth: Growth): Replace {
  return (text) => {
    let last = -1;
    // The groups of a pattern do not capture, so `at` is the position.
    return text.replace(regex, (match: string, at: number) => {
      if (isSkipped(match, text, at, last)) return '';
      last = at + match.length;
      growth.spend(to.length);
      return to;
    });
  };
}

/**
 * Whether the reference skips this match. It skips an empty match at the end of the last match. It
 * finds none between the halves of a character, where V8 finds an empty one.
 */
function isSkipped(match: string, text: string, at: number, last: number): boolean {
  if (match !== '') return false;
  return at === last || (at > 0 && (text.codePointAt(at - 1) as number) > 0xffff);
}

/** Replaces `from` in a text. Withholds an end that may be the start of `from`. */
function replaceInText(from: string, to: string, growth: Growth): Step {
  const replace = replaceString(from, to, growth);
  if (from === '') return atEnd(replace);
  let withheld = '';
  return {
    push(part) {
      const text = withheld + part;
      let settled = text.lastIndexOf(from);
      settled = settled < 0 ? 0 : endOfLastMatch(text, from);
      let length = Math.min(from.length - 1, text.length - settled);
      while (!from.startsWith(text.slice(text.length - length))) length--;
      withheld = text.slice(text.length - length);
      return [replace(text.slice(0, text.length - length))];
    },
    flush: () => [withheld],
  };
}

function endOfLastMatch(text: string, from: string): number {
  let end = 0;
  for (let at = text.indexOf(from); at >= 0; at = text.indexOf(from, end)) end = at + from.length;
  return end;
}

/**
 * Replaces a pattern in a text. A match is settled when the text is known as far as the pattern can
 * look. A pattern of unlimited length is applied at the end.
 */
function replacePatternInText(
  pattern: DecoderPattern,
  to: string,
  growth: Growth,
  continued: boolean,
): Step {
  const { regex, reach, lookbehind } = pattern;
  // What precedes the rest, for the pattern to look back. A text that continues another one
  // is not at the start of a line.
  let before = continued ? 'x' : '';
  let rest = '';
  let endsWithMatch = false;
  const settle = (limit: number): string[] => {
    const text = before + rest;
    const parts: string[] = [];
    let done = before.length;
    let last = endsWithMatch ? done : -1;
    regex.lastIndex = done;
    for (;;) {
      const match = regex.lastIndex <= text.length ? regex.exec(text) : null;
      if (match === null || match.index > limit) break;
      if (match[0] === '') regex.lastIndex += (text.codePointAt(match.index) ?? 0) > 0xffff ? 2 : 1;
      if (isSkipped(match[0], text, match.index, last)) continue;
      growth.spend(to.length);
      parts.push(text.slice(done, match.index), to);
      done = match.index + match[0].length;
      last = done;
    }
    let end = Math.max(done, Math.min(text.length, limit + 1));
    // Not between the halves of a character.
    if (end > done && (text.codePointAt(end - 1) as number) > 0xffff) end--;
    parts.push(text.slice(done, end));
    endsWithMatch = last === end;
    before = text.slice(Math.max(0, end - lookbehind), end);
    rest = text.slice(end);
    return [parts.join('')];
  };
  return {
    push(part) {
      rest += part;
      if (reach === Number.POSITIVE_INFINITY) return [];
      return settle(before.length + rest.length - reach - 1);
    },
    flush: () => settle(Number.POSITIVE_INFINITY),
  };
}

// What WordPiece and CTC tidy, in this order.
const CLEANUP: readonly [string, string][] = [
  [' .', '.'],
  [' ?', '?'],
  [' !', '!'],
  [' ,', ','],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [' do not', " don't"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

const replaceAll = (text: string, pairs: readonly [string, string][]): string =>
  pairs.reduce((result, [from, to]) => result.replaceAll(from, () => to), text);

/** CTC: drops repeated pieces and padding. */
function ctc(pairs: readonly [string, string][]): Step {
  let last: string | null = null;
  return {
    push(piece) {
      if (piece === last) return [];
      last = piece;
      const text = replaceAll(piece, pairs);
      return text === '' ? [] : [text];
    },
    flush: () => [],
  };
}

/** How far a chain has come. */
interface Chain {
  steps: Step[];
  /** The list was joined to one text. */
  isText: boolean;
  growth: Growth;
  continued: boolean;
}

/** Appends the steps of `config` to the chain. */
function append(chain: Chain, config: DecoderConfig): void {
  const { steps, isText, growth, continued } = chain;
  const { content = '', start = 0, stop = 0, cleanup = true } = config;
  const { replacement = '\u2581', prefix = '##', suffix = '</w>' } = config;
  const replaceEach = (pairs: readonly [string, string][]) => {
    steps.push(...pairs.map(([from, to]) => replaceInText(from, to, growth)));
  };
  switch (config.type) {
    case 'Sequence':
      for (const step of config.decoders ?? []) append(chain, step);
      return;
    case 'ByteLevel':
      // A character outside the alphabet makes the whole text plain.
      steps.push(isText ? atEnd((text) => Buffer.from(bytesOf(text)).toString()) : byteLevel());
      chain.isText = true;
      return;
    case 'ByteFallback':
      steps.push(isText ? byteFallbackOfText() : byteFallback());
      return;
    case 'Fuse':
      chain.isText = true;
      return;
    case 'Strip':
      if (isText) steps.push(stripText(content, continued ? 0 : start, stop));
      else steps.push(stateless((piece) => strip(piece, content, start, stop)));
      return;
    case 'Replace': {
      const from = config.pattern?.String;
      if (from !== undefined) {
        if (isText) replaceEach([[from, content]]);
        else steps.push(stateless(replaceString(from, content, growth)));
        return;
      }
      const pattern = patternOf(config);
      if (isText) steps.push(replacePatternInText(pattern, content, growth, continued));
      else steps.push(stateless(replacePattern(pattern, content, growth)));
      return;
    }
    case 'Metaspace': {
      const keeps = config.prepend_scheme === 'never' || config.add_prefix_space === false;
      const spaces = (piece: string) => piece.replaceAll(replacement, ' ');
      const first = (piece: string) => (keeps ? spaces(piece) : piece.replaceAll(replacement, ''));
      // All parts of a text are its first piece.
      if (isText) steps.push(stateless(continued ? spaces : first));
      else steps.push(firstDiffers(first, spaces, continued));
      return;
    }
    case 'WordPiece': {
      if (isText) {
        if (cleanup) replaceEach(CLEANUP);
        return;
      }
      const tidy = (piece: string) => (cleanup ? replaceAll(piece, CLEANUP) : piece);
      const rest = (piece: string) =>
        tidy(piece.startsWith(prefix) ? piece.slice(prefix.length) : ` ${piece}`);
      steps.push(firstDiffers(tidy, rest, continued));
      return;
    }
    case 'BPEDecoder':
      if (isText) replaceEach([[suffix, '']]);
      else steps.push(wordSuffix(suffix));
      return;
    case 'CTC': {
      const { pad_token = '<pad>', word_delimiter_token = '|' } = config;
      const pairs: [string, string][] = [[pad_token, '']];
      if (cleanup) pairs.push(...CLEANUP, [word_delimiter_token, ' ']);
      if (isText) replaceEach(pairs);
      else steps.push(ctc(pairs));
      return;
    }
    default:
      if (typeof config.type !== 'string') throw new TypeError('a decoder has no type');
      throw new DiffqkvError(
        'ERR_UNSUPPORTED_MODEL',
        `a decoder of type ${config.type} is not supported`,
      );
  }
}

/**
 * Creates a decoder in its initial state. If `config` is null, pieces are joined by spaces. Throws
 * ERR_UNSUPPORTED_MODEL if the config has a step of an unknown type or a pattern that is not
 * supported. `push` and `flush` throw ERR_INVALID_CHECKPOINT if Replace steps multiply the text.
 */
export function createDecoder(
  config: DecoderConfig | null,
  { continued }: DecoderContext,
): Decoder {
  const growth = new Growth();
  const chain: Chain = { steps: [], isText: false, growth, continued };
  if (config) {
    append(chain, config);
  } else {
    const identity = (piece: string) => piece;
    chain.steps.push(firstDiffers(identity, (piece) => ` ${piece}`, continued));
  }
  const { steps } = chain;
  const through = (pieces: string[], step: Step) => pieces.flatMap((piece) => step.push(piece));
  return {
    push(piece) {
      growth.grant(piece.length);
      return steps.reduce(through, [piece]).join('');
    },
    flush: () =>
      steps
        .reduce<string[]>((pieces, step) => [...through(pieces, step), ...step.flush()], [])
        .join(''),
  };
}

const BYTES_OF_TOKENS = new Set([
  'ByteLevel',
  'ByteFallback',
  'Fuse',
  'Strip',
  'Replace',
  'Metaspace',
]);

/**
 * Returns a function for the bytes that a token adds to a text that has begun. Throws
 * ERR_UNSUPPORTED_MODEL if they depend on other tokens, as with WordPiece.
 */
export function tokenBytes(config: DecoderConfig | null): (piece: string) => Uint8Array {
  const steps = config === null ? [] : stepsOf(config);
  const other = steps.find(({ type }) => !BYTES_OF_TOKENS.has(type));
  if (steps.length === 0 || other !== undefined) {
    throw new DiffqkvError(
      'ERR_UNSUPPORTED_MODEL',
      `the bytes of a token depend on other tokens with ${
        other === undefined ? 'no decoder' : `a decoder of type ${other.type}`
      }: omit responseFormat`,
    );
  }
  if (steps.some(({ type }) => type === 'ByteLevel')) return bytesOf;
  const hasByteTokens = steps.some(({ type }) => type === 'ByteFallback');
  return (piece) => {
    const byte = hasByteTokens ? byteToken(piece) : null;
    if (byte !== null) return Uint8Array.of(byte);
    const decoder = createDecoder(config, { continued: true });
    return Buffer.from(decoder.push(piece) + decoder.flush());
  };
}

function stepsOf(config: DecoderConfig): DecoderConfig[] {
  return config.type === 'Sequence' ? (config.decoders ?? []).flatMap(stepsOf) : [config];
}
