import { numeric } from './builtin';
import { pythonError, spendCharacters, unsupported } from './fuel';
import { Builder, Text } from './text';
import {
  type Arguments,
  Dict,
  Float,
  floatText,
  repr,
  Tuple,
  toInt,
  toNumber,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

const MAX_WIDTH = 10_000;

/** Pads with `fill` to `width` code points. `align` is `<`, `>` or `^`. */
export function pad(value: Text, width: number, align: string, fill = Text.plain(' ')): Text {
  const missing = width - value.size;
  if (missing <= 0) return value;
  spendCharacters(missing * 8);
  const left = align === '<' ? 0 : align === '>' ? missing : Math.floor(missing / 2);
  const builder = new Builder();
  for (let i = 0; i < left; i++) builder.add(fill);
  builder.add(value);
  for (let i = left; i < missing; i++) builder.add(fill);
  return builder.text();
}

/** Digits of a fixed-point number, with an exact half rounded to even. */
export function fixed(value: number, digits: number): string {
  if (!Number.isFinite(value)) return floatText(value);
  if (digits > 100 || Math.abs(value) >= 1e21) throw unsupported('a float format of this size');
  const sign = value < 0 || Object.is(value, -0) ? '-' : '';
  const size = Math.abs(value);
  const scaled = size * 10 ** digits;
  const isHalf = scaled % 1 === 0.5 && Number.isInteger(size * 2 ** (digits + 1));
  // toFixed rounds an exact half up.
  const isUp = isHalf && Math.floor(scaled) % 2 === 0;
  return sign + (isUp ? (Math.floor(scaled) / 10 ** digits).toFixed(digits) : size.toFixed(digits));
}

function widthOf(digits: string | undefined): number {
  const width = Number(digits ?? 0);
  if (width > MAX_WIDTH) throw unsupported(`a width beyond ${MAX_WIDTH} in a format`);
  return width;
}

/** `format % argument`. */
export function formatPercent(format: Text, argument: Value): Text {
  const items = argument instanceof Tuple ? argument.items : [argument];
  const builder = new Builder();
  const pattern = /%(?:\(([^)]*)\))?([-+ #0]*)(\*|\d+)?(?:\.(\*|\d+))?[hlL]?([\s\S]?)/g;
  let next = 0;
  let end = 0;
  let usesNames = false;
  spendCharacters(format.length);
  for (const match of format.value.matchAll(pattern)) {
    const [whole, name, flags = '', width, precision, kind] = match;
    builder.add(format.slice(end, match.index));
    end = match.index + whole.length;
    if (kind === '%') {
      builder.add(format.slice(end - 1, end));
      continue;
    }
    if (width === '*' || precision === '*') throw unsupported('a width of * in a format');
    let value: Value | undefined;
    if (name !== undefined) {
      if (!(argument instanceof Dict)) throw pythonError('format requires a mapping');
      usesNames = true;
      value = argument.getName(name);
      if (value === undefined) throw pythonError(`'${name}'`);
    } else {
      value = items[next++];
      if (value === undefined) throw pythonError('not enough arguments for format string');
    }
    const shown = percentValue(value, kind ?? '', flags, precision);
    const isNumber = kind !== 's' && kind !== 'r';
    const align = flags.includes('-') ? '<' : '>';
    const zeros = flags.includes('0') && isNumber && align === '>';
    builder.add(zeros ? zeroPad(shown.value, widthOf(width)) : pad(shown, widthOf(width), align));
  }
  builder.add(format.slice(end));
  if (next < items.length && !usesNames && !(argument instanceof Dict && next === 0)) {
    throw pythonError('not all arguments converted during string formatting');
  }
  return builder.text();
}

function zeroPad(shown: string, width: number): string {
  const sign = /^[-+ ]?/.exec(shown)?.[0] ?? '';
  return sign + shown.slice(sign.length).padStart(width - sign.length, '0');
}

function percentValue(
  value: Value,
  kind: string,
  flags: string,
  precision: string | undefined,
): Text {
  const plus = (shown: string) =>
    Text.plain(
      shown.startsWith('-')
        ? shown
        : flags.includes('+')
          ? `+${shown}`
          : flags.includes(' ')
            ? ` ${shown}`
            : shown,
    );
  if (kind === 's' || kind === 'r') {
    const shown = kind === 's' ? toText(value) : repr(value);
    return precision === undefined
      ? shown
      : Builder.join(shown.codePoints().slice(0, Number(precision)));
  }
  if (flags.includes('#')) throw unsupported('the flag # in a format');
  if ('diu'.includes(kind) && kind !== '') {
    if (toNumber(value) === undefined) {
      throw pythonError(`%${kind} format: a real number is required, not ${typeName(value)}`);
    }
    return plus(String(Math.trunc(numeric(value))));
  }
  if (kind === 'f' || kind === 'F') return plus(fixed(numeric(value), Number(precision ?? 6)));
  if ('xXo'.includes(kind) && kind !== '') {
    const number = toInt(value);
    if (number === undefined) throw pythonError(`%${kind} format: an integer is required`);
    const digits = number.toString(kind === 'o' ? 8 : 16);
    return plus(kind === 'X' ? digits.toUpperCase() : digits);
  }
  if ('eEgGca'.includes(kind) && kind !== '') throw unsupported(`the format %${kind}`);
  throw pythonError(kind === '' ? 'incomplete format' : `unsupported format character '${kind}'`);
}

/** `format.format(*args, **named)`. */
export function formatBraces(format: Text, args: Arguments): Text {
  const builder = new Builder();
  const pattern = /\{\{|\}\}|\{([^{}]*)\}|[{}]/g;
  let next = 0;
  let end = 0;
  spendCharacters(format.length);
  for (const match of format.value.matchAll(pattern)) {
    builder.add(format.slice(end, match.index));
    end = match.index + match[0].length;
    if (match[0] === '{{' || match[0] === '}}') {
      builder.add(format.slice(end - 1, end));
      continue;
    }
    if (match[1] === undefined) throw pythonError("Single '}' or '{' encountered in format string");
    const [, field = '', conversion, spec = ''] =
      /^([^!:]*)(?:!([^:]*))?(?::([\s\S]*))?$/.exec(match[1]) ?? [];
    if (/[.[]/.test(field)) throw unsupported('an attribute in str.format');
    const isIndex = field === '' || /^\d+$/.test(field);
    const value = isIndex
      ? args.positional[field === '' ? next++ : Number(field)]
      : args.named.get(field);
    if (value === undefined) {
      throw pythonError(isIndex ? 'Replacement index out of range' : `'${field}'`);
    }
    if (conversion !== undefined && conversion !== 'r' && conversion !== 's') {
      throw unsupported(`the conversion !${conversion} in str.format`);
    }
    const shown = conversion === 'r' ? repr(value) : conversion === 's' ? toText(value) : value;
    const text = formatSpec(shown, spec);
    // The fill character comes from the format.
    builder.add(format.spans.length > 0 ? Text.user(text.value) : text);
  }
  return builder.add(format.slice(end)).text();
}

function formatSpec(value: Value, spec: string): Text {
  if (spec === '') return toText(value);
  const match = /^(?:([\s\S])?([<>^=]))?([-+ ])?(0)?(\d+)?(,)?(?:\.(\d+))?([a-zA-Z%])?$/u.exec(
    spec,
  );
  if (!match) throw unsupported(`the format ${spec}`);
  const [, fill, align, sign, zero, width, comma, precision, kind] = match;
  const fillText = Text.plain(fill ?? (zero ? '0' : ' '));
  const number = toNumber(value);
  if (value instanceof Text || number === undefined) {
    if (!(value instanceof Text)) {
      if (value instanceof Undefined) throw value.fail();
      throw pythonError(`unsupported format string passed to ${typeName(value)}.__format__`);
    }
    if ((kind !== undefined && kind !== 's') || comma || sign || align === '=') {
      throw pythonError(`Unknown format code '${kind}' for object of type 'str'`);
    }
    const cut =
      precision === undefined
        ? value
        : Builder.join(value.codePoints().slice(0, Number(precision)));
    return pad(cut, widthOf(width), align ?? '<', fillText);
  }
  let digits: string;
  const isWhole = toInt(value) !== undefined;
  if (kind === 'd' || (kind === undefined && isWhole && precision === undefined)) {
    if (!isWhole) throw pythonError(`Unknown format code 'd' for object of type 'float'`);
    digits = String(number);
  } else if (kind === 'f') digits = fixed(number, Number(precision ?? 6));
  else if (kind === '%') digits = `${fixed(number * 100, Number(precision ?? 6))}%`;
  else if ('xXob'.includes(kind ?? '-') && isWhole) {
    const base = kind === 'b' ? 2 : kind === 'o' ? 8 : 16;
    digits = number.toString(base);
    if (kind === 'X') digits = digits.toUpperCase();
  } else if (kind === undefined && value instanceof Float && precision === undefined) {
    digits = floatText(number);
  } else throw unsupported(`the format ${spec}`);
  if (comma) digits = digits.replace(/^-?\d+/, (whole) => whole.replace(/\B(?=(\d{3})+$)/g, ','));
  if (sign && sign !== '-' && !digits.startsWith('-')) digits = sign + digits;
  const total = widthOf(width);
  if ((zero && align === undefined) || align === '=') {
    if (comma) throw unsupported('zeros and commas in one format');
    if (fillText.value === '0') return Text.plain(zeroPad(digits, total));
    throw unsupported(`the format ${spec}`);
  }
  return pad(Text.plain(digits), total, align ?? '>', fillText);
}
