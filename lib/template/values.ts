import {
  nested,
  pythonError,
  spend,
  spendCharacters,
  type TemplateError,
  unsupported,
} from './fuel';
import { Builder, Text } from './text';

/** A float of Python. An int is a number. */
export class Float {
  readonly value: number;
  constructor(value: number) {
    this.value = value;
  }
}

export class Tuple {
  readonly items: readonly Value[];
  constructor(items: readonly Value[]) {
    this.items = items;
  }
}

/** An element of the filter groupby: a tuple with the attributes grouper and list. */
export class Group extends Tuple {}

/** The value of a name or an attribute that does not exist. `message` is Python's. */
export class Undefined {
  readonly message: string;
  constructor(message: string) {
    this.message = message;
  }

  fail(): TemplateError {
    return pythonError(this.message);
  }
}

/** The value of a generator, which can be iterated once, or a view of a dict. */
export class Iterator {
  readonly type: string;
  #items: readonly Value[];
  constructor(type: string, items: readonly Value[]) {
    this.type = type;
    this.#items = items;
  }

  get isView(): boolean {
    return this.type.startsWith('dict_');
  }

  take(): readonly Value[] {
    const items = this.#items;
    if (!this.isView) this.#items = [];
    return items;
  }
}

export class Range {
  readonly start: number;
  readonly stop: number;
  readonly step: number;
  readonly size: number;
  constructor(start: number, stop: number, step: number) {
    this.start = start;
    this.stop = stop;
    this.step = step;
    this.size = Math.max(0, Math.ceil((stop - start) / step));
  }

  at(index: number): number {
    return this.start + index * this.step;
  }

  values(): number[] {
    spend(this.size);
    return Array.from({ length: this.size }, (_, i) => this.at(i));
  }
}

/** The result of the filters safe and escape. It can only be printed. */
export class Markup {
  readonly text: Text;
  constructor(text: Text) {
    this.text = text;
  }
}

/** The arguments of a call. */
export interface Arguments {
  positional: Value[];
  named: Map<string, Value>;
}

/** An object with attributes: a namespace, a loop, a macro, a function. */
export abstract class PyObject {
  abstract readonly type: string;
  attribute(_name: string): Value | undefined {
    return undefined;
  }
  call(_args: Arguments): Value {
    throw pythonError(`'${this.type}' object is not callable`);
  }
  get isCallable(): boolean {
    return false;
  }
}

export class Callable extends PyObject {
  readonly type = 'function';
  readonly #run: (args: Arguments) => Value;
  constructor(run: (args: Arguments) => Value) {
    super();
    this.#run = run;
  }
  override get isCallable(): boolean {
    return true;
  }
  override call(args: Arguments): Value {
    return this.#run(args);
  }
}

export class Namespace extends PyObject {
  readonly type = 'Namespace';
  readonly values = new Map<string, Value>();
  override attribute(name: string): Value | undefined {
    return this.values.get(name);
  }
}

export type Value =
  | null
  | boolean
  | number
  | Float
  | Text
  | Value[]
  | Tuple
  | Dict
  | Undefined
  | Iterator
  | Range
  | Markup
  | PyObject;

/** A dict: insertion order, keys compared as Python compares them. */
export class Dict {
  readonly #entries = new Map<string, [key: Value, value: Value]>();

  get size(): number {
    return this.#entries.size;
  }
  get(key: Value): Value | undefined {
    return this.#entries.get(hash(key))?.[1];
  }
  getName(name: string): Value | undefined {
    return this.#entries.get(`s${name}`)?.[1];
  }
  set(key: Value, value: Value): void {
    spend(1);
    const name = hash(key);
    const entry = this.#entries.get(name);
    if (entry) entry[1] = value;
    else this.#entries.set(name, [key, value]);
  }
  entries(): [key: Value, value: Value][] {
    spend(this.size);
    return [...this.#entries.values()];
  }
  keys(): Value[] {
    return this.entries().map(([key]) => key);
  }
  items(): Tuple[] {
    return this.entries().map((entry) => new Tuple(entry));
  }
}

/** A string that is equal for keys that are equal in Python. */
function hash(key: Value): string {
  spend(2);
  if (key instanceof Text) {
    spendCharacters(key.length);
    return `s${key.value}`;
  }
  if (key === null) return 'None';
  const number = toNumber(key);
  if (number !== undefined) return `n${number}`;
  if (key instanceof Tuple) {
    const items = nested(() => key.items.map(hash));
    const name = `t${items.map((item) => `${item.length}:${item}`).join('')}`;
    spend(4 + name.length);
    return name;
  }
  if (key instanceof Undefined) throw unsupported('an undefined key of a dict');
  throw pythonError(`unhashable type: '${typeName(key)}'`);
}

/** `value`, or the fallback if there is none. (`??` would replace None, which is null.) */
export function orElse(value: Value | undefined, fallback: () => Value): Value {
  return value === undefined ? fallback() : value;
}

/** The value of an int, a float or a bool. */
export function toNumber(value: Value): number | undefined {
  if (typeof value === 'number') return value;
  if (typeof value === 'boolean') return value ? 1 : 0;
  return value instanceof Float ? value.value : undefined;
}

/** The value of an int or a bool. */
export function toInt(value: Value | undefined): number | undefined {
  if (typeof value === 'boolean') return value ? 1 : 0;
  return typeof value === 'number' ? value : undefined;
}

/** The result of integer arithmetic. */
export function int(value: number): number {
  if (!Number.isSafeInteger(value)) throw unsupported('an integer beyond 2 ** 53');
  return value + 0; // never -0
}

export function typeName(value: Value): string {
  if (value === null) return 'NoneType';
  if (typeof value === 'boolean') return 'bool';
  if (typeof value === 'number') return 'int';
  if (value instanceof Float) return 'float';
  if (value instanceof Text) return 'str';
  if (Array.isArray(value)) return 'list';
  if (value instanceof Tuple) return 'tuple';
  if (value instanceof Dict) return 'dict';
  if (value instanceof Undefined) return 'Undefined';
  if (value instanceof Range) return 'range';
  return value instanceof Markup ? 'Markup' : value.type;
}

export function truth(value: Value): boolean {
  if (typeof value === 'boolean') return value;
  if (value === null || value instanceof Undefined) return false;
  if (value instanceof Text) return value.length > 0;
  if (Array.isArray(value)) return value.length > 0;
  if (value instanceof Tuple) return value.items.length > 0;
  if (value instanceof Dict || value instanceof Range) return value.size > 0;
  if (value instanceof Iterator) return !value.isView || value.take().length > 0;
  if (value instanceof Markup) return value.text.length > 0;
  return toNumber(value) !== 0;
}

/** len(value). */
export function size(value: Value): number {
  if (value instanceof Text) return value.size;
  if (Array.isArray(value)) return value.length;
  if (value instanceof Tuple) return value.items.length;
  if (value instanceof Dict || value instanceof Range) return value.size;
  if (value instanceof Undefined) return 0;
  if (value instanceof Iterator && value.isView) return value.take().length;
  if (value instanceof Markup) throw unsupported('the length of the result of the filter safe');
  throw pythonError(`object of type '${typeName(value)}' has no len()`);
}

/** The elements, or undefined if the value is not iterable. */
export function elementsOrUndefined(value: Value): readonly Value[] | undefined {
  if (Array.isArray(value)) return value;
  if (value instanceof Tuple) return value.items;
  if (value instanceof Text) return value.codePoints();
  if (value instanceof Dict) return value.keys();
  if (value instanceof Range) return value.values();
  if (value instanceof Iterator) return value.take();
  if (value instanceof Undefined) return [];
  if (value instanceof Markup) throw unsupported('a loop over the result of the filter safe');
  return undefined;
}

export function elements(value: Value): readonly Value[] {
  const items = elementsOrUndefined(value);
  if (items === undefined) throw pythonError(`'${typeName(value)}' object is not iterable`);
  spend(items.length);
  return items;
}

export function equals(a: Value, b: Value): boolean {
  spend(1);
  if (a === b) return true;
  if (a instanceof Text) {
    if (!(b instanceof Text) || a.length !== b.length) return false;
    spend(a.length / 16);
    return a.value === b.value;
  }
  const x = toNumber(a);
  if (x !== undefined) return x === toNumber(b);
  if (Array.isArray(a)) return Array.isArray(b) && sameItems(a, b);
  if (a instanceof Tuple) return b instanceof Tuple && sameItems(a.items, b.items);
  if (a instanceof Undefined) return b instanceof Undefined;
  if (a instanceof Range) return b instanceof Range && sameItems(a.values(), b.values());
  if (!(a instanceof Dict && b instanceof Dict) || a.size !== b.size) return false;
  return nested(() =>
    a.entries().every(([key, value]) => {
      const other = b.get(key);
      return other !== undefined && equals(value, other);
    }),
  );
}

function sameItems(a: readonly Value[], b: readonly Value[]): boolean {
  if (a.length !== b.length) return false;
  spend(8);
  return nested(() => a.every((item, i) => equals(item, b[i] as Value)));
}

/** Negative if a < b, positive if a > b, NaN if neither. `operator` is named in the error. */
export function compare(a: Value, b: Value, operator: string): number {
  spend(1);
  const [x, y] = [toNumber(a), toNumber(b)];
  if (x !== undefined && y !== undefined) return x === y ? 0 : x - y;
  if (a instanceof Text && b instanceof Text) return compareTexts(a, b);
  const lists =
    Array.isArray(a) && Array.isArray(b)
      ? [a, b]
      : a instanceof Tuple && b instanceof Tuple
        ? [a.items, b.items]
        : undefined;
  if (lists) {
    const [left, right] = lists as [readonly Value[], readonly Value[]];
    return nested(() => {
      const count = Math.min(left.length, right.length);
      for (let i = 0; i < count; i++) {
        const [p, q] = [left[i] as Value, right[i] as Value];
        if (!equals(p, q)) return compare(p, q, operator);
      }
      return left.length - right.length;
    });
  }
  for (const value of [a, b]) if (value instanceof Undefined) throw value.fail();
  throw pythonError(
    `'${operator}' not supported between instances of '${typeName(a)}' and '${typeName(b)}'`,
  );
}

/** By code points, not by UTF-16 code units. */
function compareTexts(a: Text, b: Text): number {
  spend(Math.min(a.length, b.length) / 4);
  if (a.value === b.value) return 0;
  if (a.isBmp && b.isBmp) return a.value < b.value ? -1 : 1;
  const [left, right] = [a.value[Symbol.iterator](), b.value[Symbol.iterator]()];
  for (;;) {
    const [p, q] = [left.next().value, right.next().value];
    if (p === undefined || q === undefined) return p === undefined ? -1 : 1;
    if (p !== q) return (p.codePointAt(0) as number) - (q.codePointAt(0) as number);
  }
}

/** repr(float). */
export function floatText(value: number): string {
  if (Number.isNaN(value)) return 'nan';
  if (!Number.isFinite(value)) return value > 0 ? 'inf' : '-inf';
  if (Object.is(value, -0)) return '-0.0';
  const [, sign, first, rest = '', power] = /^(-?)(\d)(?:\.(\d+))?e([+-]\d+)$/.exec(
    value.toExponential(),
  ) as unknown as [string, string, string, string | undefined, string];
  const exponent = Number(power);
  if (exponent < -4 || exponent >= 16) {
    const digits = String(Math.abs(exponent)).padStart(2, '0');
    return `${sign}${first}${rest && `.${rest}`}e${exponent < 0 ? '-' : '+'}${digits}`;
  }
  const digits = first + rest;
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${digits}`;
  const whole = digits.slice(0, exponent + 1).padEnd(exponent + 1, '0');
  return `${sign}${whole}.${digits.slice(exponent + 1) || '0'}`;
}

/** str(value), as `{{ value }}` prints it. */
export function toText(value: Value): Text {
  if (value instanceof Text) return value;
  if (value instanceof Undefined) return Text.plain('');
  if (value instanceof Markup) throw unsupported('an operation on the result of the filter safe');
  const builder = new Builder();
  writeRepr(value, builder);
  return builder.text();
}

/** repr(value). */
export function repr(value: Value): Text {
  const builder = new Builder();
  writeRepr(value, builder);
  return builder.text();
}

function writeRepr(value: Value, builder: Builder): void {
  if (value === null) builder.add('None');
  else if (typeof value === 'boolean') builder.add(value ? 'True' : 'False');
  else if (typeof value === 'number') builder.add(String(value));
  else if (value instanceof Float) builder.add(floatText(value.value));
  else if (value instanceof Text) writeQuoted(value, builder);
  else if (Array.isArray(value)) writeItems('[', value, ']', builder);
  else if (value instanceof Tuple) {
    writeItems('(', value.items, value.items.length === 1 ? ',)' : ')', builder);
  } else if (value instanceof Dict) {
    nested(() => {
      builder.add('{');
      value.entries().forEach(([key, item], i) => {
        if (i > 0) builder.add(', ');
        writeRepr(key, builder);
        builder.add(': ');
        writeRepr(item, builder);
      });
      builder.add('}');
    });
  } else if (value instanceof Undefined) builder.add('Undefined');
  else if (value instanceof Range) {
    const { start, stop, step } = value;
    builder.add(`range(${start}, ${stop}${step === 1 ? '' : `, ${step}`})`);
  } else if (value instanceof Iterator && value.isView) {
    writeItems(`${value.type}([`, value.take(), '])', builder);
  } else throw unsupported(`printing a ${typeName(value)}`);
}

function writeItems(open: string, items: readonly Value[], close: string, builder: Builder): void {
  spend(8);
  nested(() => {
    builder.add(open);
    items.forEach((item, i) => {
      if (i > 0) builder.add(', ');
      writeRepr(item, builder);
    });
    builder.add(close);
  });
}

const ESCAPES: Record<string, string> = { '\\': '\\\\', '\n': '\\n', '\r': '\\r', '\t': '\\t' };

function writeQuoted(text: Text, builder: Builder): void {
  const quote = text.value.includes("'") && !text.value.includes('"') ? '"' : "'";
  const escaped = (character: string) => {
    const known = character === quote ? `\\${quote}` : ESCAPES[character];
    if (known !== undefined) return known;
    const code = character.codePointAt(0) as number;
    const hex = code.toString(16);
    if (code < 0x100) return `\\x${hex.padStart(2, '0')}`;
    return code < 0x10000 ? `\\u${hex.padStart(4, '0')}` : `\\U${hex.padStart(8, '0')}`;
  };
  const pattern = /[\\'"]|(?! )[\p{C}\p{Z}]/gu;
  builder.add(quote);
  builder.add(
    text.map((part) =>
      part.replace(pattern, (c) => ((c === '"' || c === "'") && c !== quote ? c : escaped(c))),
    ),
  );
  builder.add(quote);
}
