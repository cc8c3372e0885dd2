// From token strings to text, token by token. A tokenizer.json describes its decoder as a chain of steps over a list of
// token strings; here each step is a small machine that takes one piece at a time, so that decoding all at once and
// decoding as tokens come are the same code and cannot differ.

import { DiffqkvError } from './errors';
import { withTimeLimit } from './time_limit';

/** One step of the chain. `push` takes the next piece and gives what is settled by it; `flush` gives the rest. */
export interface DecoderStep {
  push(piece: string): string;
  flush(): string;
}

/** The `decoder` object of a tokenizer.json, as far as it is read here. */
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
}

const stateless = (map: (piece: string) => string): DecoderStep => ({ push: map, flush: () => '' });

/** Runs of UTF-8 bytes to text. Ill-formed bytes become U+FFFD as soon as they are known to be ill-formed. */
class Utf8 {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  push(bytes: Uint8Array): string {
    return this.#decoder.decode(bytes, { stream: true });
  }

  flush(): string {
    return this.#decoder.decode();
  }
}

// GPT-2's alphabet: each byte is written as one printable character, its own where it is printable in Latin-1, else the
// next one from U+0100 on.
const BYTE_OF_CHAR = new Map<string, number>();
for (let byte = 0, next = 256; byte < 256; byte++) {
  const printable =
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  BYTE_OF_CHAR.set(String.fromCharCode(printable ? byte : next++), byte);
}

function byteLevel(literals: ReadonlySet<string>): DecoderStep {
  const utf8 = new Utf8();
  return {
    push(piece) {
      if (literals.has(piece)) return utf8.flush() + piece; // an added token stands for its own text
      const bytes = Array.from(piece, (char) => BYTE_OF_CHAR.get(char));
      return utf8.push(
        bytes.includes(undefined) ? Buffer.from(piece) : Uint8Array.from(bytes as number[]),
      );
    },
    flush: () => utf8.flush(),
  };
}

/** SentencePiece's byte tokens, `<0x00>` to `<0xFF>`, among ordinary ones. */
function byteFallback(): DecoderStep {
  const utf8 = new Utf8();
  return {
    push(piece) {
      const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(piece);
      return byte
        ? utf8.push(Uint8Array.of(Number.parseInt(byte[1] as string, 16)))
        : utf8.flush() + piece;
    },
    flush: () => utf8.flush(),
  };
}

function strip(text: string, content: string, start: number, stop: number): string {
  let from = 0;
  while (from < start && text[from] === content) from++;
  let to = text.length;
  while (to > from && text.length - to < stop && text[to - 1] === content) to--;
  return text.slice(from, to);
}

/** Strip on the whole text: the first `start` characters, and the last `stop`, withheld until more text comes. */
function stripWhole(content: string, start: number, stop: number): DecoderStep {
  let leading = start;
  let tail = '';
  return {
    push(piece) {
      const head = strip(piece, content, leading, 0);
      leading = head === '' ? leading - piece.length : 0;
      const text = tail + head;
      const settled = strip(text, content, 0, stop);
      tail = text.slice(settled.length);
      return settled;
    },
    flush: () => '', // what is withheld is what Strip takes away
  };
}

/** What differs between the first piece of a text and the rest. */
function firstDiffers(
  first: (piece: string) => string,
  rest: (piece: string) => string,
  continued: boolean,
): DecoderStep {
  let isFirst = !continued;
  return stateless((piece) => {
    const map = isFirst ? first : rest;
    isFirst = false;
    return map(piece);
  });
}

/** GPT-1 style word ends: the suffix is a space, but at the very end of the text it is nothing. */
function wordSuffix(suffix: string): DecoderStep {
  let held: string | null = null;
  const take = (end: string) => (held === null ? '' : held.replaceAll(suffix, end));
  return {
    push(piece) {
      const text = take(' ');
      held = piece;
      return text;
    },
    flush: () => take(''),
  };
}

function steps(
  config: DecoderConfig,
  literals: ReadonlySet<string>,
  continued: boolean,
  fused: { done: boolean },
): DecoderStep[] {
  const {
    content = '',
    start = 0,
    stop = 0,
    replacement = '\u2581',
    prefix = '##',
    suffix = '</w>',
  } = config;
  switch (config.type) {
    case 'Sequence':
      return (config.decoders ?? []).flatMap((step) => steps(step, literals, continued, fused));
    case 'ByteLevel':
      return [byteLevel(literals)];
    case 'ByteFallback':
      return [byteFallback()];
    case 'Fuse': // joins all pieces into one; what it changes is the meaning of a Strip behind it
      fused.done = true;
      return [];
    case 'Strip':
      if (!fused.done) return [stateless((piece) => strip(piece, content, start, stop))];
      return [stripWhole(content, continued ? 0 : start, stop)];
    case 'Replace': {
      const text = config.pattern?.String;
      if (text !== undefined) return [stateless((piece) => piece.replaceAll(text, () => content))];
      const pattern = new RegExp(config.pattern?.Regex as string, 'gu');
      const replace = (piece: string) => piece.replaceAll(pattern, () => content);
      return [
        stateless((piece) => withTimeLimit("the decoder's pattern", 5000, () => replace(piece))),
      ];
    }
    case 'Metaspace': {
      const spaces = (piece: string) => piece.replaceAll(replacement, ' ');
      const keeps = config.prepend_scheme === 'never' || config.add_prefix_space === false;
      return [
        firstDiffers(
          (piece) => (keeps ? spaces(piece) : spaces(piece).replace(/^ /, '')),
          spaces,
          continued,
        ),
      ];
    }
    case 'WordPiece': {
      const rest = (piece: string) =>
        piece.startsWith(prefix) ? piece.slice(prefix.length) : ` ${piece}`;
      return [firstDiffers((piece) => piece, rest, continued)];
    }
    case 'BPEDecoder':
      return [wordSuffix(suffix)];
    default:
      if (typeof config.type !== 'string') throw new TypeError('a decoder has no type');
      throw new DiffqkvError(
        'ERR_UNSUPPORTED_MODEL',
        `a decoder of type ${config.type} is not supported`,
      );
  }
}

/**
 * A fresh decoder. `config` is null where the tokenizer has none: pieces are then joined by spaces. `literals` are the
 * added tokens, which stand for themselves. `continued`: the text goes on from an earlier one, so that a space which
 * the decoder takes off the start of a text stays. Throws ERR_UNSUPPORTED_MODEL
 * where the config asks for a step that isn't known here.
 */
export function createDecoder(
  config: DecoderConfig | null,
  literals: ReadonlySet<string>,
  continued: boolean,
): DecoderStep {
  const chain = config
    ? steps(config, literals, continued, { done: false })
    : [
        firstDiffers(
          (piece) => piece,
          (piece) => ` ${piece}`,
          continued,
        ),
      ];
  return {
    push: (piece) => chain.reduce((text, step) => (text === '' ? '' : step.push(text)), piece),
    flush: () =>
      chain.reduce((text, step) => (text === '' ? '' : step.push(text)) + step.flush(), ''),
  };
}
