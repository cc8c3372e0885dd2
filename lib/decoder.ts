// Token strings ("pieces") to text. The decoder of a tokenizer.json is a chain of steps over a list
// of pieces. Here each step is a state machine that accepts one piece at a time. Decoding a whole
// list pushes all its pieces, so streamed text and whole text cannot differ.

import { DiffqkvError } from './errors';
import { withTimeLimit } from './time_limit';

/**
 * One step of the chain. `push` accepts the next piece and returns the text that cannot change any
 * more. `flush` returns the rest at the end.
 */
export interface DecoderStep {
  push(piece: string): string;
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
}

/** What the steps of a decoder need besides its config. */
export interface DecoderContext {
  /** The added tokens, whose pieces are plain text. */
  literals: ReadonlySet<string>;
  /** The text continues an earlier one, so a space at its start is kept. */
  continued: boolean;
}

const stateless = (map: (piece: string) => string): DecoderStep => ({ push: map, flush: () => '' });

/** Decodes UTF-8 in parts. Ill-formed bytes become U+FFFD as soon as they are known to be. */
class Utf8 {
  readonly #decoder = new TextDecoder('utf-8', { ignoreBOM: true });

  push(bytes: Uint8Array): string {
    return this.#decoder.decode(bytes, { stream: true });
  }

  flush(): string {
    return this.#decoder.decode();
  }
}

// The alphabet of GPT-2 writes each byte as one printable character: its Latin-1 character if that
// is printable, else the next unused one from U+0100.
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
      if (literals.has(piece)) return utf8.flush() + piece;
      const bytes = Array.from(piece, (char) => BYTE_OF_CHAR.get(char));
      return utf8.push(
        bytes.includes(undefined) ? Buffer.from(piece) : Uint8Array.from(bytes as number[]),
      );
    },
    flush: () => utf8.flush(),
  };
}

/** Decodes the byte tokens of SentencePiece, `<0x00>` to `<0xFF>`. Other pieces are plain text. */
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

/**
 * Strips `content` from the whole text: up to `start` times at its start and `stop` times at its
 * end. Withholds text that `stop` removes if no more text follows.
 */
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
    flush: () => '', // the withheld text is at the end, so it is stripped
  };
}

/** Applies `first` to the first piece of a text, `rest` to the others. */
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

/** Word ends as in GPT-1: replaces the suffix by a space, and by nothing at the end of the text. */
function wordSuffix(suffix: string): DecoderStep {
  let last: string | null = null;
  const lastWithEnd = (end: string) => (last === null ? '' : last.replaceAll(suffix, end));
  return {
    push(piece) {
      const text = lastWithEnd(' ');
      last = piece;
      return text;
    },
    flush: () => lastWithEnd(''),
  };
}

/** `fused.done` becomes true at a Fuse step. */
function steps(
  config: DecoderConfig,
  context: DecoderContext,
  fused: { done: boolean },
): DecoderStep[] {
  const { literals, continued } = context;
  const { content = '', start = 0, stop = 0 } = config;
  const { replacement = '\u2581', prefix = '##', suffix = '</w>' } = config;
  switch (config.type) {
    case 'Sequence':
      return (config.decoders ?? []).flatMap((step) => steps(step, context, fused));
    case 'ByteLevel':
      return [byteLevel(literals)];
    case 'ByteFallback':
      return [byteFallback()];
    case 'Fuse': // joins all pieces, so a later Strip applies to the whole text
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
        stateless((piece) =>
          withTimeLimit('the pattern of the decoder', 5000, () => replace(piece)),
        ),
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
 * Creates a decoder in its initial state. If `config` is null, pieces are joined by spaces. Throws
 * ERR_UNSUPPORTED_MODEL if the config has a step of an unknown type.
 */
export function createDecoder(config: DecoderConfig | null, context: DecoderContext): DecoderStep {
  const joined = firstDiffers(
    (piece) => piece,
    (piece) => ` ${piece}`,
    context.continued,
  );
  const chain = config ? steps(config, context, { done: false }) : [joined];
  return {
    push: (piece) => chain.reduce((text, step) => (text === '' ? '' : step.push(text)), piece),
    flush: () =>
      chain.reduce((text, step) => (text === '' ? '' : step.push(text)) + step.flush(), ''),
  };
}
