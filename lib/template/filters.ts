import { type Builtin, bind, call, integer, numeric, soft, text } from './builtin';
import { fixed, formatPercent } from './format';
import { nested, pythonError, spend, spendCharacters, unsupported } from './fuel';
import { toJson } from './json';
import {
  capitalize,
  center,
  lower,
  replace,
  splitLines,
  strip,
  titleFilter,
  upper,
} from './methods';
import { arithmetic, attribute, item } from './operators';
import { tests } from './tests';
import { Builder, Text } from './text';
import {
  type Arguments,
  compare,
  Dict,
  elements,
  Float,
  Group,
  Iterator,
  int,
  Markup,
  orElse,
  PyObject,
  repr,
  size,
  Tuple,
  toNumber,
  toText,
  truth,
  typeName,
  Undefined,
  type Value,
} from './values';

const generator = (items: readonly Value[]) => new Iterator('generator', items);
const plain = (value: string) => Text.plain(value);
const isGiven = (value: Value | undefined): value is Value => value !== undefined && value !== null;

/** A function that returns the attribute `path`, such as `a.b` or 0, of a value. */
function getter(path: Value | undefined, fallback?: Value): (value: Value) => Value {
  if (path === undefined || path === null) return (value) => value;
  if (path instanceof Text) spend(path.length);
  const steps: Value[] =
    path instanceof Text
      ? path.value.split('.').map((step) => (/^\d+$/.test(step) ? Number(step) : plain(step)))
      : [path];
  return (value) => {
    let current = value;
    for (const step of steps) {
      current = item(current, step);
      if (current instanceof Undefined && isGiven(fallback)) current = fallback;
    }
    return current;
  };
}

/** Ignores the case of strings, as sort, unique, min and max do by default. */
function sortKey(caseSensitive: Value | undefined, path: Value | undefined) {
  const get = getter(path);
  return (value: Value): Value => {
    const key = get(value);
    return key instanceof Text && !truth(caseSensitive ?? false) ? lower(key) : key;
  };
}

function sortBy(values: readonly Value[], key: (value: Value) => Value, reverse: boolean): Value[] {
  const keyed = values.map((value) => ({ value, key: key(value) }));
  spend(keyed.length * 4);
  const sign = reverse ? -1 : 1;
  keyed.sort((a, b) => sign * compare(a.key, b.key, '<'));
  return keyed.map(({ value }) => value);
}

/** The first value whose key is the least (sign 1) or the greatest (sign -1). */
function extreme(values: Value, sign: number, caseSensitive?: Value, path?: Value): Value {
  const key = sortKey(caseSensitive, path);
  const [first, ...rest] = elements(values);
  if (first === undefined) return new Undefined('No aggregated item, sequence was empty.');
  let best = first;
  for (const value of rest) {
    if (sign * compare(key(value), key(best), sign > 0 ? '<' : '>') < 0) best = value;
  }
  return best;
}

/** select, reject, selectattr and rejectattr. */
function choose(value: Value, args: Arguments, wanted: boolean, usesAttribute: boolean): Value {
  const positional = [...args.positional];
  const get = usesAttribute ? getter(required(positional.shift(), 'attribute')) : getter(null);
  const name = positional.shift();
  const isChosen = (element: Value) =>
    name === undefined
      ? truth(get(element))
      : runTest(text(name).value, get(element), { positional, named: args.named });
  return generator(elements(value).filter((element) => isChosen(element) === wanted));
}

function required(value: Value | undefined, name: string): Value {
  if (value === undefined) throw pythonError(`missing parameter '${name}'`);
  return value;
}

function map(value: Value, args: Arguments): Value {
  const items = elements(value);
  const path = args.named.get('attribute');
  if (args.positional.length === 0 && path !== undefined) {
    const get = getter(path, args.named.get('default'));
    return generator(items.map(get));
  }
  const [name, ...positional] = args.positional;
  const filter = text(required(name, 'filter')).value;
  const rest = { positional, named: args.named };
  return generator(items.map((element) => runFilter(filter, element, rest)));
}

function batch(value: Value, count: number, fill: Value | undefined): Value[] {
  const items = elements(value);
  if (count < 1) throw unsupported('the filter batch with a count below 1');
  const rows: Value[] = [];
  for (let i = 0; i < items.length; i += count) {
    const row = items.slice(i, i + count);
    spend(count);
    while (isGiven(fill) && row.length < count) row.push(fill);
    rows.push(row);
  }
  return rows;
}

function columns(value: Value, count: number, fill: Value | undefined): Value[] {
  const items = elements(value);
  if (count < 1) throw pythonError('integer division or modulo by zero');
  spend(count);
  const [per, extra] = [Math.floor(items.length / count), items.length % count];
  let at = 0;
  return Array.from({ length: count }, (_, i) => {
    const end = at + per + (i < extra ? 1 : 0);
    const column = items.slice(at, end);
    at = end;
    if (isGiven(fill) && i >= extra) column.push(fill);
    return column;
  });
}

function indent(value: Text, width: Value, first: boolean, blank: boolean): Text {
  const by = indentUnit(width);
  // A newline is added first, so an empty last line counts.
  const lines = splitLines(Text.concat(value, plain('\n')), false);
  const builder = new Builder();
  lines.forEach((line, i) => {
    if (i > 0) builder.add('\n');
    if (i === 0 ? first : blank || line.length > 0) builder.add(by);
    builder.add(line);
  });
  return builder.text();
}

function toInteger(value: Value, fallback: Value, base: number): Value {
  const number = toNumber(value);
  if (number !== undefined) return Number.isFinite(number) ? int(Math.trunc(number)) : fallback;
  if (!(value instanceof Text)) return fallback;
  const digits = strip(value, null, 'both').value.replace(/(?<=[\da-z])_(?=[\da-z])/gi, '');
  const pattern = INTEGERS[base];
  if (pattern === undefined) throw unsupported(`the base ${base} of the filter int`);
  const [, sign, bare] = pattern.exec(digits) ?? [];
  if (bare !== undefined) return int((sign === '-' ? -1 : 1) * Number.parseInt(bare, base));
  const float = parseFloatText(digits);
  return float !== undefined && Number.isFinite(float) ? int(Math.trunc(float)) : fallback;
}

/** Sign and digits of an integer, by its base. */
const INTEGERS: Record<number, RegExp> = {
  2: /^([-+]?)(?:0b)?([01]+)$/i,
  8: /^([-+]?)(?:0o)?([0-7]+)$/i,
  10: /^([-+]?)(\d+)$/,
  16: /^([-+]?)(?:0x)?([\da-f]+)$/i,
};

function parseFloatText(digits: string): number | undefined {
  if (/^[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?$/i.test(digits)) return Number(digits);
  if (/^[-+]?(inf|infinity|nan)$/i.test(digits)) throw unsupported('inf or nan in a string');
  return undefined;
}

function round(number: Value, precision: number, method: string): Value {
  const value = numeric(number);
  const digits = Math.max(-20, Math.min(precision, 20));
  if (method === 'common') {
    if (digits >= 0) {
      return number instanceof Float ? new Float(Number(fixed(value, digits))) : value;
    }
    const scale = 10 ** -digits;
    const rounded = Number(fixed(value / scale, 0)) * scale;
    return number instanceof Float ? new Float(rounded) : int(rounded);
  }
  if (method !== 'ceil' && method !== 'floor') {
    throw pythonError('method must be common, ceil or floor');
  }
  return new Float(Math[method](value * 10 ** digits) / 10 ** digits);
}

function truncate(value: Text, length: number, kill: boolean, end: Text, leeway: number): Text {
  const points = value.codePoints();
  if (points.length <= length + leeway) return value;
  const cut = Builder.join(points.slice(0, length - end.size));
  if (kill) return Text.concat(cut, end);
  const at = cut.value.lastIndexOf(' ');
  return Text.concat(at < 0 ? cut : cut.slice(0, at), end);
}

function groupBy(value: Value, path: Value, fallback: Value | undefined, sensitive?: Value): Value {
  const get = getter(path, fallback);
  const key = (element: Value) => {
    const found = get(element);
    return found instanceof Text && !truth(sensitive ?? false) ? lower(found) : found;
  };
  const groups: { key: Value; name: Value; list: Value[] }[] = [];
  for (const element of sortBy(elements(value), key, false)) {
    const last = groups.at(-1);
    if (last && compare(last.key, key(element), '<') === 0) last.list.push(element);
    else groups.push({ key: key(element), name: get(element), list: [element] });
  }
  return groups.map(({ name, list }) => new Group([name, list]));
}

const ENTITIES: Record<string, string> = {
  ...{ '&': '&amp;', '<': '&lt;', '>': '&gt;', "'": '&#39;', '"': '&#34;' },
};
const escapeHtml: Builtin<Value> = [
  '',
  (value) =>
    value instanceof Markup
      ? value
      : new Markup(
          toText(value).map((part) => part.replace(/[&<>'"]/g, (c) => ENTITIES[c] as string)),
        ),
];

const length: Builtin<Value> = ['', size];
const fallbackValue: Builtin<Value> = [
  'default_value? boolean?',
  (value, fallback = plain(''), boolean = false) =>
    value instanceof Undefined || (truth(boolean) && !truth(value)) ? fallback : value,
];

/** The filters of Jinja, and tojson as transformers defines it. */
const filters: Record<string, Builtin<Value>> = {
  abs: [
    '',
    (value) => {
      const number = Math.abs(numeric(value));
      return value instanceof Float ? new Float(number) : number;
    },
  ],
  attr: [
    'name',
    (value, name) => {
      if (value instanceof Dict) {
        const found = attribute(value, soft(name as Value).value);
        return found instanceof PyObject ? found : new Undefined(`'dict object' has no attribute`);
      }
      return attribute(value, soft(name as Value).value);
    },
  ],
  batch: [
    'linecount fill_with?',
    (value, count, fill) => generator(batch(value, integer(count, 1), fill)),
  ],
  capitalize: ['', (value) => capitalize(soft(value))],
  center: ['width?', (value, width) => center(soft(value), integer(width, 80), plain(' '))],
  count: length,
  d: fallbackValue,
  default: fallbackValue,
  dictsort: [
    'case_sensitive? by? reverse?',
    (value, sensitive, by, reverse) => {
      const position = by === undefined ? 'key' : text(by).value;
      if (position !== 'key' && position !== 'value') {
        throw pythonError("You can only sort by either 'key' or 'value'");
      }
      if (value instanceof Undefined) throw value.fail();
      if (!(value instanceof Dict)) throw pythonError(`'${typeName(value)}' has no items`);
      const key = sortKey(sensitive, position === 'key' ? 0 : 1);
      return sortBy(value.items(), key, truth(reverse ?? false));
    },
  ],
  e: escapeHtml,
  escape: escapeHtml,
  first: ['', (value) => orElse(elements(value)[0], () => new Undefined('No first item.'))],
  float: [
    'default?',
    (value, fallback = new Float(0)) => {
      const number = toNumber(value);
      if (number !== undefined) return new Float(number);
      if (!(value instanceof Text)) return fallback;
      const parsed = parseFloatText(
        strip(value, null, 'both').value.replace(/(?<=\d)_(?=\d)/g, ''),
      );
      return parsed === undefined ? fallback : new Float(parsed);
    },
  ],
  forceescape: escapeHtml,
  groupby: [
    'attribute default? case_sensitive?',
    (value, path, fallback, sensitive) => groupBy(value, path as Value, fallback, sensitive),
  ],
  indent: [
    'width? first? blank?',
    (value, width = 4, first = false, blank = false) =>
      indent(soft(value), width, truth(first), truth(blank)),
  ],
  int: [
    'default? base?',
    (value, fallback = 0, base = 10) => toInteger(value, fallback, integer(base, 10)),
  ],
  items: [
    '',
    (value) => {
      if (value instanceof Undefined) return generator([]);
      if (value instanceof Dict) return generator(value.items());
      throw pythonError('Can only get item pairs from a mapping.');
    },
  ],
  join: [
    'd? attribute?',
    (value, by = plain(''), path) => {
      const get = getter(path);
      const shown = elements(value).map((element) => soft(get(element)));
      return Builder.join(shown, soft(by));
    },
  ],
  last: [
    '',
    (value) => {
      if (value instanceof Iterator && !value.isView) {
        throw pythonError("'generator' object is not reversible");
      }
      return orElse(elements(value).at(-1), () => new Undefined('No last item.'));
    },
  ],
  length,
  list: ['', (value) => [...elements(value)]],
  lower: ['', (value) => lower(soft(value))],
  max: [
    'case_sensitive? attribute?',
    (value, sensitive, path) => extreme(value, -1, sensitive, path),
  ],
  min: [
    'case_sensitive? attribute?',
    (value, sensitive, path) => extreme(value, 1, sensitive, path),
  ],
  pprint: [
    '',
    (value) => {
      const shown = repr(value);
      if (shown.length > 78) throw unsupported('the filter pprint of a long value');
      return shown;
    },
  ],
  replace: [
    'old new count?',
    (value, old, next, count) =>
      replace(soft(value), soft(old as Value), soft(next as Value), integer(count, -1)),
  ],
  reverse: [
    '',
    (value) => {
      if (value instanceof Text) return Builder.join(value.codePoints().reverse());
      return new Iterator('list_reverseiterator', [...elements(value)].reverse());
    },
  ],
  round: [
    'precision? method?',
    (value, precision, method = plain('common')) =>
      round(value, integer(precision, 0), text(method).value),
  ],
  safe: ['', (value) => (value instanceof Markup ? value : new Markup(toText(value)))],
  slice: [
    'slices fill_with?',
    (value, count, fill) => generator(columns(value, integer(count, 1), fill)),
  ],
  sort: [
    'reverse? case_sensitive? attribute?',
    (value, reverse, sensitive, path) => {
      if (path instanceof Text && path.value.includes(',')) {
        throw unsupported('the filter sort by several attributes');
      }
      return sortBy(elements(value), sortKey(sensitive, path), truth(reverse ?? false));
    },
  ],
  string: ['', soft],
  sum: [
    'attribute? start?',
    (value, path, start = 0) =>
      elements(value)
        .map(getter(path))
        .reduce((total, element) => arithmetic('+', total, element), start),
  ],
  title: ['', (value) => titleFilter(soft(value))],
  tojson: [
    'ensure_ascii? indent? separators? sort_keys?',
    (value, ensureAscii = false, width = null, separators = null, sortKeys = false) => {
      const pair = isGiven(separators) ? elements(separators).map(text) : undefined;
      if (pair && pair.length !== 2) throw pythonError('separators must be a pair');
      const [itemSeparator, keySeparator] = pair ?? [
        plain(width === null ? ', ' : ','),
        plain(': '),
      ];
      return toJson(value, {
        ensureAscii: truth(ensureAscii),
        indent: width === null ? undefined : indentUnit(width),
        itemSeparator: itemSeparator as Text,
        keySeparator: keySeparator as Text,
        sortKeys: truth(sortKeys),
      });
    },
  ],
  trim: ['chars?', (value, chars) => strip(soft(value), chars, 'both')],
  truncate: [
    'length? killwords? end? leeway?',
    (value, count, kill = false, end = plain('...'), leeway = 5) =>
      truncate(soft(value), integer(count, 255), truth(kill), text(end), integer(leeway, 5)),
  ],
  unique: [
    'case_sensitive? attribute?',
    (value, sensitive, path) => {
      const key = sortKey(sensitive, path);
      const seen = new Dict();
      return generator(
        elements(value).filter((element) => {
          const name = key(element);
          if (seen.get(name) !== undefined) return false;
          seen.set(name, true);
          return true;
        }),
      );
    },
  ],
  upper: ['', (value) => upper(soft(value))],
  urlencode: [
    '',
    (value) => {
      if (!(value instanceof Text)) throw unsupported('the filter urlencode of other than a str');
      const quote = (c: string) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`;
      return value.map((part) =>
        encodeURIComponent(part.replace(/\p{Cs}/gu, '\ufffd'))
          .replace(/[!'()*]/g, quote)
          .replaceAll('%2F', '/'),
      );
    },
  ],
  wordcount: [
    '',
    (value) => {
      const text = soft(value);
      spendCharacters(text.length);
      return text.value.match(/[\p{L}\p{N}_]+/gu)?.length ?? 0;
    },
  ],
};

function indentUnit(width: Value): Text {
  if (width instanceof Text) return width;
  const count = Math.max(0, integer(width, 0));
  spendCharacters(count);
  return plain(' '.repeat(count));
}

type Variadic = (value: Value, args: Arguments) => Value;
/** Filters that pass arguments on. */
const variadic: Record<string, Variadic> = {
  format: (value, args) => {
    if (args.named.size > 0 && args.positional.length > 0) {
      throw pythonError("can't handle positional and keyword arguments at the same time");
    }
    const named = new Dict();
    for (const [name, argument] of args.named) named.set(Text.user(name), argument);
    return formatPercent(soft(value), args.named.size > 0 ? named : new Tuple(args.positional));
  },
  map,
  reject: (value, args) => choose(value, args, false, false),
  rejectattr: (value, args) => choose(value, args, false, true),
  select: (value, args) => choose(value, args, true, false),
  selectattr: (value, args) => choose(value, args, true, true),
};

/** `value | name(args)`. */
export function runFilter(name: string, value: Value, args: Arguments): Value {
  spend(4);
  return nested(() => {
    if (Object.hasOwn(variadic, name)) return (variadic[name] as Variadic)(value, args);
    const filter = Object.hasOwn(filters, name) ? filters[name] : undefined;
    if (filter === undefined) throw unsupported(`the filter ${name}`);
    return call(name, filter, value, args);
  });
}

/** `value is name(args)`. */
export function runTest(name: string, value: Value, args: Arguments): boolean {
  spend(4);
  if (name === 'filter' || name === 'test') {
    const known = text(value).value;
    const tables = name === 'test' ? [tests] : [filters, variadic];
    return tables.some((table) => Object.hasOwn(table, known));
  }
  const test = Object.hasOwn(tests, name) ? tests[name] : undefined;
  if (test === undefined) throw unsupported(`the test ${name}`);
  return truth(test[1](value, ...bind(name, test[0], args)));
}
