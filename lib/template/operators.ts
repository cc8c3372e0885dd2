import { formatPercent } from './format';
import { pythonError, spend, spendCharacters, spendSearch, unsupported } from './fuel';
import { method } from './methods';
import { Builder, Text } from './text';
import {
  compare,
  Dict,
  elementsOrUndefined,
  equals,
  Float,
  Group,
  Iterator,
  int,
  orElse,
  PyObject,
  Range,
  Tuple,
  toInt,
  toNumber,
  typeName,
  Undefined,
  type Value,
} from './values';

type Numeric = (x: number, y: number) => number;

function floorDivide(x: number, y: number): number {
  return Math.floor(x / y);
}

/** The remainder with the sign of the divisor. */
function modulo(x: number, y: number): number {
  const rest = x % y;
  return rest !== 0 && rest < 0 !== y < 0 ? rest + y : rest;
}

const NUMERIC: Record<string, Numeric> = {
  '+': (x, y) => x + y,
  '-': (x, y) => x - y,
  '*': (x, y) => x * y,
  '/': (x, y) => x / y,
  '//': floorDivide,
  '%': modulo,
  '**': (x, y) => x ** y,
};

/** `left operator right` for an arithmetic operator. */
export function arithmetic(operator: string, left: Value, right: Value): Value {
  spend(1);
  const [x, y] = [toNumber(left), toNumber(right)];
  if (x !== undefined && y !== undefined) {
    if (y === 0 && (operator === '/' || operator === '//' || operator === '%')) {
      throw pythonError(operator === '/' ? 'division by zero' : 'integer modulo by zero');
    }
    if (operator === '**' && ((x === 0 && y < 0) || (x < 0 && !Number.isInteger(y)))) {
      throw pythonError('the power is not a real number');
    }
    const result = (NUMERIC[operator] as Numeric)(x, y);
    const isInt = toInt(left) !== undefined && toInt(right) !== undefined && operator !== '/';
    return isInt && !(operator === '**' && y < 0) ? int(result) : new Float(result);
  }
  if (operator === '%' && left instanceof Text) return formatPercent(left, right);
  for (const value of [left, right]) if (value instanceof Undefined) throw value.fail();
  if (operator === '+') return sum(left, right);
  if (operator === '*') {
    const count = toInt(right);
    if (count !== undefined && isSequence(left)) return repeat(left, count);
    const times = toInt(left);
    if (times !== undefined && isSequence(right)) return repeat(right, times);
  }
  throw mismatch(operator, left, right);
}

function mismatch(operator: string, left: Value, right: Value): Error {
  const names = [typeName(left), typeName(right)];
  if (names.includes('Markup')) return unsupported('an operation on the result of the filter safe');
  return pythonError(
    `unsupported operand type(s) for ${operator}: '${names[0]}' and '${names[1]}'`,
  );
}

type Sequence = Text | Value[] | Tuple;
function isSequence(value: Value): value is Sequence {
  return value instanceof Text || Array.isArray(value) || value instanceof Tuple;
}

function sum(left: Value, right: Value): Value {
  if (left instanceof Text && right instanceof Text) return Text.concat(left, right);
  if (Array.isArray(left) && Array.isArray(right)) {
    spend(left.length + right.length);
    return [...left, ...right];
  }
  if (left instanceof Tuple && right instanceof Tuple) {
    spend(left.items.length + right.items.length);
    return new Tuple([...left.items, ...right.items]);
  }
  const [one, other] = [typeName(left), typeName(right)];
  if (other === 'Markup' || !isSequence(left)) throw mismatch('+', left, right);
  throw pythonError(`can only concatenate ${one} (not "${other}") to ${one}`);
}

function repeat(value: Sequence, count: number): Value {
  if (value instanceof Text) {
    if (count <= 0 || value.length === 0) return Text.plain('');
    spendCharacters(value.length * count);
    spend((value.spans.length + 1) * count);
    return Builder.join(Array<Text>(count).fill(value));
  }
  const items = value instanceof Tuple ? value.items : value;
  if (count > 0) spend(items.length * count + 1);
  const repeated: Value[] = [];
  for (let i = 0; i < count && items.length > 0; i++) for (const one of items) repeated.push(one);
  return value instanceof Tuple ? new Tuple(repeated) : repeated;
}

/** `left operator right` for a comparison. */
export function compares(operator: string, left: Value, right: Value): boolean {
  switch (operator) {
    case '==':
      return equals(left, right);
    case '!=':
      return !equals(left, right);
    case '<':
      return compare(left, right, operator) < 0;
    case '<=':
      return compare(left, right, operator) <= 0;
    case '>':
      return compare(left, right, operator) > 0;
    case '>=':
      return compare(left, right, operator) >= 0;
    case 'in':
      return contains(right, left);
    default:
      return !contains(right, left);
  }
}

/** `item in container`. */
export function contains(container: Value, item: Value): boolean {
  if (container instanceof Text) {
    if (item instanceof Undefined) throw item.fail();
    if (!(item instanceof Text)) {
      const name = typeName(item);
      throw pythonError(`'in <string>' requires string as left operand, not ${name}`);
    }
    spendSearch(container.length, item.length);
    return container.value.includes(item.value);
  }
  if (container instanceof Dict) return container.get(item) !== undefined;
  const items = elementsOrUndefined(container);
  if (items === undefined) {
    throw pythonError(`argument of type '${typeName(container)}' is not iterable`);
  }
  return items.some((element) => equals(element, item));
}

/** `value.name`. */
export function attribute(value: Value, name: string): Value {
  spend(1);
  if (value instanceof Undefined) throw value.fail();
  if (value instanceof PyObject) return orElse(value.attribute(name), () => missing(value, name));
  if (value instanceof Group && (name === 'grouper' || name === 'list')) {
    return value.items[name === 'grouper' ? 0 : 1] as Value;
  }
  // A method has precedence over an entry of the same name.
  const found = method(value, name) ?? (value instanceof Dict ? value.getName(name) : undefined);
  return orElse(found, () => missing(value, name));
}

function missing(value: Value, name: string): Undefined {
  const owner = value === null ? 'None' : `${typeName(value)} object`;
  return new Undefined(
    value === null
      ? `${owner} has no attribute '${name}'`
      : `'${owner}' has no attribute '${name}'`,
  );
}

/** `value[key]`. */
export function item(value: Value, key: Value): Value {
  spend(1);
  if (value instanceof Undefined) throw value.fail();
  if (value instanceof Dict) {
    const found = isHashable(key) ? value.get(key) : undefined;
    if (found !== undefined) return found;
  } else if (toInt(key) !== undefined) {
    const found = element(value, toInt(key) as number);
    if (found !== undefined) return found;
  }
  if (!(key instanceof Text)) {
    return new Undefined(`'${typeName(value)} object' has no element ${String(toInt(key) ?? key)}`);
  }
  const found = value instanceof PyObject ? value.attribute(key.value) : method(value, key.value);
  return orElse(found, () => missing(value, key.value));
}

function isHashable(key: Value): boolean {
  return !(Array.isArray(key) || key instanceof Dict || key instanceof Undefined);
}

function element(value: Value, index: number): Value | undefined {
  if (Array.isArray(value)) return value.at(index);
  if (value instanceof Tuple) return value.items.at(index);
  if (value instanceof Range) {
    const at = index < 0 ? index + value.size : index;
    return at >= 0 && at < value.size ? value.at(at) : undefined;
  }
  if (!(value instanceof Text)) return undefined;
  if (!value.isBmp) return value.codePoints().at(index);
  const at = index < 0 ? index + value.length : index;
  return at >= 0 && at < value.length ? value.slice(at, at + 1) : undefined;
}

/** `value[start:stop:step]`. */
export function slice(value: Value, bounds: (Value | undefined)[]): Value {
  spend(1);
  if (value instanceof Undefined) throw value.fail();
  const [first, last, stride] = bounds.map((bound) => {
    if (bound === undefined || bound === null) return undefined;
    const index = toInt(bound);
    if (index !== undefined) return index;
    if (bound instanceof Undefined) throw bound.fail();
    throw pythonError('slice indices must be integers or None');
  });
  const step = stride ?? 1;
  if (step === 0) throw pythonError('slice step cannot be zero');
  if (!(isSequence(value) || value instanceof Range)) {
    if (value instanceof Iterator || value === null || toNumber(value) !== undefined) {
      return new Undefined(`${typeName(value)} object has no element slice`);
    }
    throw pythonError(`'${typeName(value)}' object cannot be sliced`);
  }
  const length = value instanceof Text ? value.size : lengthOf(value);
  const clamp = (index: number | undefined, whole: number) => {
    if (index === undefined) return whole;
    const at = index < 0 ? index + length : index;
    return step > 0 ? Math.min(Math.max(at, 0), length) : Math.min(Math.max(at, -1), length - 1);
  };
  const start = clamp(first, step > 0 ? 0 : length - 1);
  const stop = clamp(last, step > 0 ? length : -1);
  if (value instanceof Text && step === 1 && value.isBmp) return value.slice(start, stop);
  if (value instanceof Range) {
    return new Range(value.at(start), value.at(stop), value.step * step);
  }
  const items =
    value instanceof Text ? value.codePoints() : value instanceof Tuple ? value.items : value;
  const picked: Value[] = [];
  for (let i = start; step > 0 ? i < stop : i > stop; i += step) {
    spend(1);
    picked.push(items[i] as Value);
  }
  if (value instanceof Text) return Builder.join(picked as Text[]);
  return value instanceof Tuple ? new Tuple(picked) : picked;
}

function lengthOf(value: Value[] | Tuple | Range): number {
  if (value instanceof Range) return value.size;
  return value instanceof Tuple ? value.items.length : value.length;
}
