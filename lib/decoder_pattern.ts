// Regular expressions of Replace decoders. The reference uses Oniguruma with Ruby's syntax. This
// translates a subset to JavaScript whose matching time is bounded: quantifiers apply to single
// characters, and at most one has no upper limit.

import { DiffqkvError } from './errors';

/** A regular expression with Oniguruma's meaning. */
export interface DecoderPattern {
  /** With the flags g and u. */
  regex: RegExp;
  /** Code units from the start of a match that decide it, or Infinity. */
  reach: number;
  /** Code units before a match that decide it. */
  lookbehind: number;
}

// Oniguruma's classes for Unicode text.
const CLASSES: Record<string, string> = {
  s: '\\t-\\r \\u0085\\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000',
  d: '\\p{Nd}',
  w: '\\p{L}\\p{M}\\p{N}\\p{Pc}',
  h: '0-9a-fA-F',
};
const CONTROLS = new Set(['n', 'r', 't', 'f', 'v']);
const MAX_REPEATS = 1000;

/** Throws ERR_UNSUPPORTED_MODEL if the pattern is outside the subset. */
export function compileDecoderPattern(source: string): DecoderPattern {
  if (typeof source !== 'string') throw new TypeError('a Replace decoder has no pattern');
  const parser = new Parser(source);
  const { js, width } = parser.parse();
  const { lookahead, lookbehind } = parser;
  const regex = new RegExp(js, 'gu');
  // `^` looks at the characters before and after it. A character has up to two code units.
  return { regex, reach: 2 * (width + lookahead + 1), lookbehind: 2 * (lookbehind + 1) };
}

interface Part {
  js: string;
  /** Characters at most. */
  width: number;
}

class Parser {
  readonly #chars: string[];
  readonly #source: string;
  #at = 0;
  #unlimited = 0;
  lookahead = 0;
  lookbehind = 0;

  constructor(source: string) {
    this.#source = source;
    this.#chars = Array.from(source);
  }

  parse(): Part {
    const part = this.#alternatives();
    if (this.#at < this.#chars.length) throw this.#unsupported();
    return part;
  }

  #unsupported(): DiffqkvError {
    const shown = JSON.stringify(this.#source.slice(0, 80));
    return new DiffqkvError(
      'ERR_UNSUPPORTED_MODEL',
      `the pattern ${shown} of a Replace decoder is not supported (at character ${this.#at}): ` +
        'supported are characters, classes, anchors, alternatives and lookaround, with ' +
        'quantifiers on single characters, one of them without a limit',
    );
  }

  #skip(text: string): boolean {
    const chars = Array.from(text);
    if (!chars.every((char, i) => this.#chars[this.#at + i] === char)) return false;
    this.#at += chars.length;
    return true;
  }

  #alternatives(): Part {
    const parts = [this.#sequence()];
    while (this.#skip('|')) parts.push(this.#sequence());
    return {
      js: parts.map(({ js }) => js).join('|'),
      width: Math.max(...parts.map(({ width }) => width)),
    };
  }

  #sequence(): Part {
    let js = '';
    let width = 0;
    while (this.#at < this.#chars.length && !/[|)]/.test(this.#chars[this.#at] as string)) {
      const part = this.#group() ?? this.#repeated();
      js += part.js;
      width += part.width;
    }
    return { js, width };
  }

  /** An anchor, a group or a lookaround. None of them may be repeated. */
  #group(): Part | null {
    let part: Part;
    if (this.#skip('^')) {
      part = { js: '(?:^|(?<=\\n)(?=[\\s\\S]))', width: 0 };
    } else if (this.#skip('$')) {
      part = { js: '(?:$|(?=\\n))', width: 0 };
    } else if (this.#skip('(')) {
      const kind = ['?:', '?=', '?!', '?<=', '?<!'].find((text) => this.#skip(text)) ?? '?:';
      if (this.#chars[this.#at] === '?') throw this.#unsupported();
      const inner = this.#alternatives();
      if (!this.#skip(')')) throw this.#unsupported();
      if (kind.startsWith('?<')) this.lookbehind = Math.max(this.lookbehind, inner.width);
      else if (kind !== '?:') this.lookahead = Math.max(this.lookahead, inner.width);
      part = { js: `(${kind}${inner.js})`, width: kind === '?:' ? inner.width : 0 };
    } else {
      return null;
    }
    if (/[*+?{]/.test(this.#chars[this.#at] ?? '')) throw this.#unsupported();
    return part;
  }

  #repeated(): Part {
    const js = this.#chars[this.#at] === '[' ? this.#set() : this.#character(false);
    const rest = this.#chars.slice(this.#at, this.#at + 12).join('');
    const match = /^(?:[*+?]|\{(\d+)(,?)(\d*)\})\??/.exec(rest);
    if (match === null) {
      if (rest.startsWith('{')) throw this.#unsupported();
      return { js, width: 1 };
    }
    this.#at += match[0].length;
    if (/[*+?{]/.test(this.#chars[this.#at] ?? '')) throw this.#unsupported();
    const isUnlimited = /^[*+]/.test(match[0]) || (match[2] === ',' && match[3] === '');
    if (isUnlimited && ++this.#unlimited > 1) throw this.#unsupported();
    const most = match[0].startsWith('?') ? 1 : Number(match[3] || match[1]);
    if (!isUnlimited && most > MAX_REPEATS) throw this.#unsupported();
    return { js: js + match[0], width: isUnlimited ? Number.POSITIVE_INFINITY : most };
  }

  #set(): string {
    this.#at++;
    const negated = this.#skip('^');
    let js = '';
    while (this.#chars[this.#at] !== ']' || js === '') {
      const char = this.#chars[this.#at];
      // Oniguruma has sets in sets and intersections.
      if (char === undefined || char === '[' || char === '&') throw this.#unsupported();
      if (this.#skip('-')) js += '-';
      else js += this.#character(true);
    }
    this.#at++;
    return `[${negated ? '^' : ''}${js}]`;
  }

  #character(inSet: boolean): string {
    const char = this.#chars[this.#at++];
    if (char === undefined || (!inSet && /[*+?{}]/.test(char))) throw this.#unsupported();
    if (char === '.' && !inSet) return '[^\\n]';
    if (char !== '\\') return literal(char);
    const escaped = this.#chars[this.#at++] ?? '';
    const members = CLASSES[escaped.toLowerCase()];
    if (members !== undefined) {
      const negated = escaped !== escaped.toLowerCase();
      if (inSet && negated) throw this.#unsupported();
      return inSet ? members : `[${negated ? '^' : ''}${members}]`;
    }
    if (CONTROLS.has(escaped)) return `\\${escaped}`;
    if (!/^[^\p{L}\p{N}]$/u.test(escaped)) throw this.#unsupported();
    return literal(escaped);
  }
}

const literal = (char: string): string => `\\u{${(char.codePointAt(0) as number).toString(16)}}`;
