import { spend, syntaxError, unsupported } from './fuel';

/**
 * A token of a template: `data` is text between tags, `begin` and `end` are the delimiters of a tag
 * (value: 'print' or 'block').
 */
export interface Token {
  type: 'data' | 'begin' | 'end' | 'name' | 'string' | 'integer' | 'float' | 'operator';
  value: string;
  line: number;
}

/** White space as Python's str.isspace defines it. */
export const SPACE =
  '\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000';
const isSpace = new RegExp(`[${SPACE}]`);
const spaces = new RegExp(`[${SPACE}]*`, 'y');
const rawBegin = new RegExp(`\\{%[-+]?[${SPACE}]*raw[${SPACE}]*(-?)%\\}`, 'y');
const rawEnd = new RegExp(`\\{%([-+]?)[${SPACE}]*endraw[${SPACE}]*([-+]?)%\\}`, 'g');

const number =
  /0b(?:_?[01])+|0o(?:_?[0-7])+|0x(?:_?[\da-f])+|\d+(?:_\d+)*(?:\.\d+(?:_\d+)*)?(?:e[+-]?\d+(?:_\d+)*)?/iy;
const asciiName = /[A-Za-z_][A-Za-z_\d]*(?![A-Za-z_\d]|[^\0-\x7f])/y;
const name = /[\p{L}\p{Nl}\p{Mn}\p{Mc}\p{Nd}\p{Pc}]+/uy;
const operator = /\*\*|\/\/|==|!=|>=|<=|[-+*/%~[\](){}><=.:|,;]/y;
const tagBegin = /\{[{%#]/g;
const UNITS_PER_TOKEN = 4;
const CLOSING: Record<string, string> = { '(': ')', '[': ']', '{': '}' };

function match(pattern: RegExp, source: string, at: number): RegExpExecArray | null {
  pattern.lastIndex = at;
  return pattern.exec(source);
}

function trimEnd(text: string): string {
  let end = text.length;
  while (end > 0 && isSpace.test(text[end - 1] as string)) end--;
  return text.slice(0, end);
}

/** The text without white space between the start of its last line and its end. */
function stripLine(text: string, startsLine: boolean): string {
  const start = text.lastIndexOf('\n') + 1;
  if (start === 0 && !startsLine) return text;
  return trimEnd(text).length <= start ? text.slice(0, start) : text;
}

/** Splits a template into tokens, with trim_blocks and lstrip_blocks, as Jinja does. Linear. */
export function tokenize(template: string): Token[] {
  const source = template.replace(/\r\n?/g, '\n').replace(/\n$/, '');
  const tokens: Token[] = [];
  let at = 0;
  let startsLine = true;
  let line = 1;
  let counted = 0;

  const lineAt = (position: number) => {
    for (; counted < position; counted++) if (source[counted] === '\n') line++;
    return line;
  };
  const push = (type: Token['type'], value: string, position: number) => {
    spend(UNITS_PER_TOKEN);
    tokens.push({ type, value, line: lineAt(position) });
  };
  /** Skips what follows a tag: white space after `-`, one newline after a block or a comment. */
  const finish = (sign: string, end: number, trims: boolean) => {
    at = end;
    if (sign === '-') at += spacesAt(source, at);
    else if (sign === '' && trims && source[at] === '\n') at++;
    startsLine = source[at - 1] === '\n';
  };
  const data = (text: string, sign: string, strips: boolean, position: number) => {
    const kept =
      sign === '-' ? trimEnd(text) : strips && sign !== '+' ? stripLine(text, startsLine) : text;
    if (kept !== '') push('data', kept, position);
  };

  while (at < source.length) {
    const start = at;
    const open = match(tagBegin, source, at)?.index;
    if (open === undefined) {
      push('data', source.slice(start), start);
      break;
    }
    const kind = source[open + 1] as string;
    const signAt = source[open + 2] ?? '';
    const sign = signAt === '-' || signAt === '+' ? signAt : '';
    data(source.slice(start, open), sign, kind !== '{', start);
    const raw = kind === '%' ? match(rawBegin, source, open) : null;
    if (raw) {
      const tagEnd = open + raw[0].length;
      const from = tagEnd + (raw[1] === '-' ? spacesAt(source, tagEnd) : 0);
      startsLine = source[from - 1] === '\n';
      const end = match(rawEnd, source, from);
      if (!end) throw syntaxError('Missing end of raw directive', lineAt(open));
      data(source.slice(from, end.index), end[1] as string, true, from);
      finish(end[2] as string, end.index + end[0].length, true);
    } else if (kind === '#') {
      const end = source.indexOf('#}', open + 2);
      if (end < 0) throw syntaxError('Missing end of comment tag', lineAt(open));
      const endSign = end > open + 2 ? (source[end - 1] as string) : '';
      finish('-+'.includes(endSign) ? endSign : '', end + 2, true);
    } else {
      push('begin', kind === '{' ? 'print' : 'block', open);
      at = open + 2 + sign.length;
      readTag(kind === '{' ? '}}' : '%}');
    }
  }
  return tokens;

  /** Reads the tokens of a tag up to its end. */
  function readTag(close: string): void {
    const brackets: string[] = [];
    for (;;) {
      at += spacesAt(source, at);
      if (at >= source.length) throw syntaxError('unexpected end of template', lineAt(at));
      const sign = source[at] as string;
      const length = (sign === '-' || sign === '+') && source.startsWith(close, at + 1) ? 1 : 0;
      const isBlock = close === '%}';
      if (
        brackets.length === 0 &&
        (length === 0 ? source.startsWith(close, at) : sign === '-' || isBlock)
      ) {
        push('end', isBlock ? 'block' : 'print', at);
        finish(length === 0 ? '' : sign, at + length + 2, isBlock);
        return;
      }
      readToken(brackets);
    }
  }

  function readToken(brackets: string[]): void {
    const character = source[at] as string;
    if (character === '"' || character === "'") {
      let end = at + 1;
      while (end < source.length && source[end] !== character) end += source[end] === '\\' ? 2 : 1;
      if (end >= source.length) throw syntaxError(`unexpected char ${character}`, lineAt(at));
      push('string', literal(source.slice(at + 1, end), lineAt(at)), at);
      at = end + 1;
      return;
    }
    const isDigit = character >= '0' && character <= '9';
    const digits = isDigit ? match(number, source, at)?.[0] : undefined;
    if (digits !== undefined) {
      const isFloat = !/^0[box]/i.test(digits) && /[.e]/i.test(digits);
      push(isFloat ? 'float' : 'integer', digits.replaceAll('_', ''), at);
      at += digits.length;
      return;
    }
    const word = (match(asciiName, source, at) ?? match(name, source, at))?.[0];
    if (word !== undefined) {
      push('name', word, at);
      at += word.length;
      return;
    }
    const symbol = match(operator, source, at)?.[0];
    if (symbol === undefined) throw syntaxError(`unexpected char '${character}'`, lineAt(at));
    if (CLOSING[symbol] !== undefined) brackets.push(CLOSING[symbol]);
    else if (')]}'.includes(symbol)) {
      const expected = brackets.pop();
      if (expected !== symbol) {
        const hint = expected === undefined ? '' : `, expected '${expected}'`;
        throw syntaxError(`unexpected '${symbol}'${hint}`, lineAt(at));
      }
    }
    push('operator', symbol, at);
    at += symbol.length;
  }
}

function spacesAt(source: string, at: number): number {
  return match(spaces, source, at)?.[0].length ?? 0;
}

const SIMPLE: Record<string, string> = {
  ...{ '\n': '', '\\': '\\', "'": "'", '"': '"', a: '\x07', b: '\b', f: '\f', n: '\n' },
  ...{ r: '\r', t: '\t', v: '\v' },
};

/** The value of a string literal, whose escapes are Python's. */
function literal(text: string, line: number): string {
  if (!text.includes('\\')) return text;
  spend(text.length / 2);
  return text.replace(
    /\\(?:([0-7]{1,3})|x([\dA-Fa-f]{2})|u([\dA-Fa-f]{4})|U([\dA-Fa-f]{8})|([\s\S]))/g,
    (whole, octal, x, u, long, simple) => {
      if (octal !== undefined) return String.fromCharCode(Number.parseInt(octal, 8));
      const hex = x ?? u ?? long;
      if (hex !== undefined && Number.parseInt(hex, 16) <= 0x10ffff) {
        return String.fromCodePoint(Number.parseInt(hex, 16));
      }
      if (hex !== undefined || 'xuU'.includes(simple)) {
        throw syntaxError(`the escape ${whole} in a string is malformed`, line);
      }
      if (simple === 'N') throw unsupported('the escape \\N in a string');
      return SIMPLE[simple as string] ?? whole;
    },
  );
}
