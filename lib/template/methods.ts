import { type Builtin, call, integer, text } from './builtin';
import { formatBraces, pad } from './format';
import { pythonError, spend, spendCharacters, spendSearch, unsupported } from './fuel';
import { SPACE } from './lexer';
import { Builder, Text } from './text';
import {
  Callable,
  Dict,
  elements,
  equals,
  Iterator,
  orElse,
  Tuple,
  toNumber,
  truth,
  typeName,
  Undefined,
  type Value,
} from './values';

const spaceCharacter = new RegExp(`[${SPACE}]`);
const spaceRun = new RegExp(`[${SPACE}]+`, 'g');

/** str.strip(characters). `sides` says which ends. */
export function strip(
  value: Text,
  characters: Value | undefined,
  sides: 'both' | 'left' | 'right',
): Text {
  const isNone = characters === undefined || characters === null;
  const wanted = isNone ? undefined : text(characters).value;
  if (wanted) spend(wanted.length);
  const set = wanted === undefined ? undefined : new Set(wanted);
  const strips = (point: string) => (set ? set.has(point) : spaceCharacter.test(point));
  const source = value.value;
  spendCharacters(source.length);
  let start = 0;
  let end = source.length;
  while (sides !== 'right' && start < end) {
    const point = String.fromCodePoint(source.codePointAt(start) as number);
    if (!strips(point)) break;
    start += point.length;
  }
  while (sides !== 'left' && end > start) {
    const low = source.charCodeAt(end - 1);
    const isPair = low >= 0xdc00 && low <= 0xdfff && end - 2 >= start;
    const point = isPair ? source.slice(end - 2, end) : source.slice(end - 1, end);
    if (!strips(point)) break;
    end -= point.length;
  }
  return value.slice(start, end);
}

interface Run {
  start: number;
  end: number;
}

/** The runs of white space in a text. */
function spaceRuns(value: Text): Run[] {
  spendCharacters(value.length);
  return Array.from(value.value.matchAll(spaceRun), ({ 0: run, index }) => {
    spend(1);
    return { start: index, end: index + run.length };
  });
}

/** str.split(separator, limit). */
function split(value: Text, separator: Value | undefined, limit: number): Text[] {
  const pieces: Text[] = [];
  const max = limit < 0 ? Number.POSITIVE_INFINITY : limit;
  if (separator === undefined || separator === null) {
    const runs = spaceRuns(value);
    let next = 0;
    let start = 0;
    if (runs[0]?.start === 0) start = (runs[next++] as Run).end;
    while (start < value.length) {
      const run = runs[next++];
      if (run === undefined || pieces.length >= max) {
        pieces.push(value.slice(start));
        break;
      }
      pieces.push(value.slice(start, run.start));
      start = run.end;
    }
    return pieces;
  }
  const by = text(separator).value;
  if (by === '') throw pythonError('empty separator');
  spendSearch(value.length, by.length);
  let at = 0;
  while (pieces.length < max) {
    const end = value.value.indexOf(by, at);
    if (end < 0) break;
    pieces.push(value.slice(at, end));
    at = end + by.length;
  }
  pieces.push(value.slice(at));
  return pieces;
}

/** str.rsplit(separator, limit). */
function rsplit(value: Text, separator: Value | undefined, limit: number): Text[] {
  if (limit < 0) return split(value, separator, -1);
  const pieces: Text[] = [];
  if (separator === undefined || separator === null) {
    const runs = spaceRuns(value);
    let end = value.length;
    if (runs.at(-1)?.end === end) end = (runs.pop() as Run).start;
    while (end > 0) {
      const run = pieces.length < limit ? runs.pop() : undefined;
      pieces.push(value.slice(run?.end ?? 0, end));
      end = run?.start ?? 0;
    }
    return pieces.reverse();
  }
  const by = text(separator).value;
  if (by === '') throw pythonError('empty separator');
  spendSearch(value.length, by.length);
  let end = value.length;
  while (pieces.length < limit) {
    const start = end - by.length < 0 ? -1 : value.value.lastIndexOf(by, end - by.length);
    if (start < 0) break;
    pieces.push(value.slice(start + by.length, end));
    end = start;
  }
  pieces.push(value.slice(0, end));
  return pieces.reverse();
}

/** str.replace(old, new, count). */
export function replace(value: Text, old: Text, next: Text, count: number): Text {
  spendSearch(value.length, old.length);
  const builder = new Builder();
  let left = count < 0 ? Number.POSITIVE_INFINITY : count;
  if (old.length === 0) {
    const points = value.codePoints();
    points.forEach((point) => {
      if (left-- > 0) builder.add(next);
      builder.add(point);
    });
    if (left > 0) builder.add(next);
    return builder.text();
  }
  let at = 0;
  while (left-- > 0) {
    const found = value.value.indexOf(old.value, at);
    if (found < 0) break;
    builder.add(value.slice(at, found)).add(next);
    at = found + old.length;
  }
  return at === 0 ? value : builder.add(value.slice(at)).text();
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: these end lines in Python.
const LINE_END = /\r\n|[\n-\r\x1c-\x1e\x85\u2028\u2029]/g;

export function splitLines(value: Text, keepEnds: boolean): Text[] {
  spendCharacters(value.length);
  const lines: Text[] = [];
  let at = 0;
  for (const match of value.value.matchAll(LINE_END)) {
    const end = match.index + match[0].length;
    lines.push(value.slice(at, keepEnds ? end : match.index));
    at = end;
  }
  if (at < value.length) lines.push(value.slice(at));
  return lines;
}

const isCased = /^\p{Cased}/u;

/** The title case of one code point. */
function titleCase(point: string): string {
  const code = point.codePointAt(0) as number;
  if (code >= 0x1c4 && code <= 0x1cc) return String.fromCharCode(code - ((code - 0x1c4) % 3) + 1);
  if (code >= 0x1f1 && code <= 0x1f3) return '\u01f2';
  if (code >= 0x10d0 && code <= 0x10ff) return point; // Georgian
  if (code >= 0x1f80 && code <= 0x1faf) return String.fromCharCode(code | 8);
  if (code === 0x1fb3 || code === 0x1fc3 || code === 0x1ff3) return String.fromCharCode(code + 9);
  const [first = '', ...rest] = point.toUpperCase();
  return first + (isCased.test(first) ? rest.join('').toLowerCase() : rest.join(''));
}

export function capitalize(value: Text): Text {
  const [first] = value.value;
  if (first === undefined) return value;
  const head = value.slice(0, first.length).map(titleCase);
  return Text.concat(
    head,
    value.slice(first.length).mapWhole((rest) => rest.toLowerCase()),
  );
}

function titleWords(value: string): string {
  return value.replace(/\p{Cased}+/gu, (word) => {
    const [first = ''] = word;
    // The lower case of a sigma depends on the characters before it.
    return titleCase(first) + word.toLowerCase().slice(first.toLowerCase().length);
  });
}

/** The title filter of Jinja: words end at white space and at `-({[<`. */
export function titleFilter(value: Text): Text {
  const separator = new RegExp(`[-${SPACE}({[<]+`, 'g');
  const builder = new Builder();
  let at = 0;
  const word = (end: number) => {
    const [first = ''] = value.value.slice(at, end);
    builder.add(value.slice(at, at + first.length).map((point) => point.toUpperCase()));
    builder.add(value.slice(at + first.length, end).mapWhole((rest) => rest.toLowerCase()));
  };
  spendCharacters(value.length);
  for (const match of value.value.matchAll(separator)) {
    if (at < match.index) word(match.index);
    builder.add(value.slice(match.index, match.index + match[0].length));
    at = match.index + match[0].length;
  }
  if (at < value.length) word(value.length);
  return builder.text();
}

/** The code units of str[start:stop]. */
function bounds(value: Text, start: Value | undefined, stop: Value | undefined): [number, number] {
  const { size } = value;
  const clamp = (index: number) => Math.min(Math.max(index < 0 ? index + size : index, 0), size);
  const from = integer(start, 0);
  const first = from > size ? size + 1 : clamp(from);
  const last = clamp(integer(stop, size));
  if (value.isBmp) return [first, last];
  const units = [0];
  for (const point of value.value) units.push((units.at(-1) as number) + point.length);
  spend(size);
  return [units[first] ?? value.length + 1, units[last] as number];
}

/** The position in code points of `part`, or -1. */
function find(
  value: Text,
  part: Value | undefined,
  range: [number, number],
  last: boolean,
): number {
  const needle = text(part).value;
  const [start, end] = range;
  spendSearch(value.length, needle.length);
  if (start > end || start + needle.length > end) return -1;
  const at = last
    ? value.value.lastIndexOf(needle, end - needle.length)
    : value.value.slice(0, end).indexOf(needle, start);
  if (at < start) return -1;
  return value.isBmp ? at : Text.plain(value.value.slice(0, at)).size;
}

function hasAffix(
  value: Text,
  affixes: Value | undefined,
  range: [number, number],
  test: (whole: string, affix: string) => boolean,
): boolean {
  const [start, end] = range;
  if (start > end) return false;
  const whole = value.value.slice(start, end);
  const list = affixes instanceof Tuple ? affixes.items : [affixes];
  return list.some((affix) => {
    const { value: wanted } = text(affix);
    spendCharacters(wanted.length);
    return test(whole, wanted);
  });
}

function isAll(pattern: RegExp): Builtin<Text> {
  return [
    '',
    (self) => {
      spendCharacters(self.length);
      return pattern.test(self.value);
    },
  ];
}

function isCase(wrong: RegExp): Builtin<Text> {
  return [
    '',
    (self) => {
      spendCharacters(self.length);
      return /\p{Cased}/u.test(self.value) && !wrong.test(self.value);
    },
  ];
}

function partition(value: Text, by: Value | undefined, last: boolean): Tuple {
  const separator = text(by);
  if (separator.length === 0) throw pythonError('empty separator');
  spendSearch(value.length, separator.length);
  const { value: source } = value;
  const at = last ? source.lastIndexOf(separator.value) : source.indexOf(separator.value);
  const none = Text.plain('');
  if (at < 0) return new Tuple(last ? [none, none, value] : [value, none, none]);
  const end = at + separator.length;
  return new Tuple([value.slice(0, at), value.slice(at, end), value.slice(end)]);
}

function indexOrFail(index: number): number {
  if (index < 0) throw pythonError('substring not found');
  return index;
}

export function join(separator: Text, values: readonly Value[]): Text {
  values.forEach((value, i) => {
    if (value instanceof Text) return;
    throw pythonError(`sequence item ${i}: expected str instance, ${typeName(value)} found`);
  });
  return Builder.join(values as Text[], separator);
}

export const upper = (value: Text) => value.mapWhole((part) => part.toUpperCase());
export const lower = (value: Text) => value.mapWhole((part) => part.toLowerCase());

/** str.center of Python puts the odd space on the left if the width is odd. */
export function center(value: Text, width: number, fill: Text): Text {
  const missing = width - value.size;
  if (missing <= 0) return value;
  const left = Math.floor(missing / 2) + (missing & width & 1);
  return pad(pad(value, value.size + left, '>', fill), width, '<', fill);
}

const strings: Record<string, Builtin<Text>> = {
  strip: ['chars?', (self, chars) => strip(self, chars, 'both')],
  lstrip: ['chars?', (self, chars) => strip(self, chars, 'left')],
  rstrip: ['chars?', (self, chars) => strip(self, chars, 'right')],
  split: ['sep? maxsplit?', (self, sep, max) => split(self, sep, integer(max, -1))],
  rsplit: ['sep? maxsplit?', (self, sep, max) => rsplit(self, sep, integer(max, -1))],
  splitlines: ['keepends?', (self, keep) => splitLines(self, truth(keep ?? false))],
  startswith: [
    'prefix start? end?',
    (self, prefix, start, end) =>
      hasAffix(self, prefix, bounds(self, start, end), (whole, affix) => whole.startsWith(affix)),
  ],
  endswith: [
    'suffix start? end?',
    (self, suffix, start, end) =>
      hasAffix(self, suffix, bounds(self, start, end), (whole, affix) => whole.endsWith(affix)),
  ],
  replace: [
    'old new count?',
    (self, old, next, count) => replace(self, text(old), text(next), integer(count, -1)),
  ],
  upper: ['', upper],
  lower: ['', lower],
  title: ['', (self) => self.mapWhole(titleWords)],
  capitalize: ['', capitalize],
  swapcase: [
    '',
    (self) =>
      self.map((part) =>
        part.replace(/\p{Uppercase}|\p{Lowercase}/gu, (c) =>
          /\p{Uppercase}/u.test(c) ? c.toLowerCase() : c.toUpperCase(),
        ),
      ),
  ],
  find: ['sub start? end?', (self, sub, a, b) => find(self, sub, bounds(self, a, b), false)],
  rfind: ['sub start? end?', (self, sub, a, b) => find(self, sub, bounds(self, a, b), true)],
  index: [
    'sub start? end?',
    (self, sub, a, b) => indexOrFail(find(self, sub, bounds(self, a, b), false)),
  ],
  rindex: [
    'sub start? end?',
    (self, sub, a, b) => indexOrFail(find(self, sub, bounds(self, a, b), true)),
  ],
  count: [
    'sub start? end?',
    (self, sub, a, b) => {
      const [start, end] = bounds(self, a, b);
      const part = text(sub);
      const within = self.slice(start, end);
      if (part.length === 0) return start > end ? 0 : within.size + 1;
      return split(within, part, -1).length - 1;
    },
  ],
  join: ['iterable', (self, values) => join(self, elements(values as Value))],
  isdigit: isAll(/^(\p{Nd}|[\xb2\xb3\xb9\u2070\u2074-\u2079\u2080-\u2089\u2460-\u2468])+$/u),
  isdecimal: isAll(/^\p{Nd}+$/u),
  isnumeric: isAll(/^\p{N}+$/u),
  isalpha: isAll(/^\p{L}+$/u),
  isalnum: isAll(/^[\p{L}\p{N}]+$/u),
  isspace: isAll(new RegExp(`^[${SPACE}]+$`)),
  isascii: isAll(/^\p{ASCII}*$/u),
  isupper: isCase(/[\p{Lowercase}\p{Lt}]/u),
  islower: isCase(/[\p{Uppercase}\p{Lt}]/u),
  istitle: [
    '',
    (self) => {
      spendCharacters(self.length * 4);
      return (
        isCased.test(self.value.replace(/^\P{Cased}+/u, '')) &&
        titleWords(self.value) === self.value
      );
    },
  ],
  zfill: [
    'width',
    (self, width) => {
      const [sign = ''] = /^[-+]/.exec(self.value) ?? [];
      const zeros = integer(width, 0) - sign.length;
      const digits = pad(self.slice(sign.length), zeros, '>', Text.plain('0'));
      return Text.concat(self.slice(0, sign.length), digits);
    },
  ],
  center: [
    'width fillchar?',
    (self, width, fill) => center(self, integer(width, 0), text(fill ?? Text.plain(' '))),
  ],
  ljust: [
    'width fillchar?',
    (self, width, fill) => pad(self, integer(width, 0), '<', text(fill ?? Text.plain(' '))),
  ],
  rjust: [
    'width fillchar?',
    (self, width, fill) => pad(self, integer(width, 0), '>', text(fill ?? Text.plain(' '))),
  ],
  partition: ['sep', (self, sep) => partition(self, sep, false)],
  rpartition: ['sep', (self, sep) => partition(self, sep, true)],
  removeprefix: [
    'prefix',
    (self, prefix) => {
      const { value, length } = text(prefix);
      return self.value.startsWith(value) ? self.slice(length) : self;
    },
  ],
  removesuffix: [
    'suffix',
    (self, suffix) => {
      const { value, length } = text(suffix);
      return self.value.endsWith(value) ? self.slice(0, self.length - length) : self;
    },
  ],
};

const dicts: Record<string, Builtin<Dict>> = {
  get: [
    'key default?',
    (self, key, fallback = null) => orElse(self.get(key as Value), () => fallback),
  ],
  keys: ['', (self) => new Iterator('dict_keys', self.keys())],
  values: [
    '',
    (self) =>
      new Iterator(
        'dict_values',
        self.entries().map(([, value]) => value),
      ),
  ],
  items: ['', (self) => new Iterator('dict_items', self.items())],
  copy: [
    '',
    (self) => {
      const copy = new Dict();
      for (const [key, value] of self.entries()) copy.set(key, value);
      return copy;
    },
  ],
};

const lists: Record<string, Builtin<readonly Value[]>> = {
  count: [
    'value',
    (self, value) => self.filter((element) => equals(element, value as Value)).length,
  ],
  index: [
    'value',
    (self, value) => {
      const at = self.findIndex((element) => equals(element, value as Value));
      if (at < 0) throw pythonError('the value is not in list');
      return at;
    },
  ],
};

// Methods of Python that this interpreter does not have.
const OTHERS: Record<string, string> = {
  str: 'casefold encode expandtabs format_map isidentifier isprintable maketrans translate',
  dict: 'fromkeys',
  int: 'as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag numerator real to_bytes',
  float: 'as_integer_ratio conjugate fromhex hex imag is_integer real',
  range: 'count index start step stop',
};
// Methods that change a value. The sandbox of transformers forbids them too.
const UNSAFE: Record<string, string> = {
  list: 'append clear extend insert pop remove reverse sort',
  dict: 'clear pop popitem setdefault update',
};

/** The method of a str, list, tuple or dict, or undefined. */
export function method(value: Value, name: string): Value | undefined {
  const type = value === null || value instanceof Undefined ? '' : typeName(value);
  const has = (names: Record<string, string>) => names[type]?.split(' ').includes(name);
  if (has(UNSAFE)) {
    const message = `access to attribute '${name}' of '${type}' object is unsafe.`;
    return new Undefined(message);
  }
  const bound = <Self>(table: Record<string, Builtin<Self>>, self: Self) => {
    const builtin = Object.hasOwn(table, name) ? table[name] : undefined;
    return builtin && new Callable((args) => call(name, builtin, self, args));
  };
  let found: Value | undefined;
  if (value instanceof Text) {
    found =
      name === 'format' ? new Callable((args) => formatBraces(value, args)) : bound(strings, value);
  } else if (value instanceof Dict) found = bound(dicts, value);
  else if (value instanceof Tuple) found = bound(lists, value.items);
  else if (Array.isArray(value)) {
    found = name === 'copy' ? new Callable(() => [...value]) : bound(lists, value);
  }
  if (found !== undefined) return found;
  const isKnown = has(OTHERS) || (type === 'Markup' && !name.startsWith('_'));
  if (isKnown && (toNumber(value) === undefined || has(OTHERS))) {
    throw unsupported(`the method ${name} of ${type}`);
  }
  return undefined;
}
