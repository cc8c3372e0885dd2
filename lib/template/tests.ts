import { type Builtin, numeric, soft } from './builtin';
import { pythonError } from './fuel';
import { compares, contains } from './operators';
import { Text } from './text';
import {
  Dict,
  elementsOrUndefined,
  Float,
  Iterator,
  Markup,
  PyObject,
  Range,
  Tuple,
  toNumber,
  Undefined,
  type Value,
} from './values';

function comparison(operator: string): Builtin<Value> {
  return ['other', (value, other) => compares(operator, value, other as Value)];
}

function remainder(value: Value, divisor: Value | undefined): number {
  const by = numeric(divisor as Value);
  if (by === 0) throw pythonError('integer modulo by zero');
  return numeric(value) % by;
}

function isIterable(value: Value): boolean {
  return (
    value instanceof Iterator || value instanceof Range || elementsOrUndefined(value) !== undefined
  );
}

const isSequence = (value: Value) =>
  value instanceof Text ||
  Array.isArray(value) ||
  [Tuple, Dict, Range, Undefined].some((type) => value instanceof type);

const equal = comparison('==');
const [greater, less] = [comparison('>'), comparison('<')];

/** The tests of Jinja. */
export const tests: Record<string, Builtin<Value>> = {
  boolean: ['', (value) => typeof value === 'boolean'],
  // Calling an undefined value says what is undefined.
  callable: [
    '',
    (value) => value instanceof Undefined || (value instanceof PyObject && value.isCallable),
  ],
  defined: ['', (value) => !(value instanceof Undefined)],
  divisibleby: ['num', (value, by) => remainder(value, by) === 0],
  eq: equal,
  equalto: equal,
  '==': equal,
  escaped: ['', (value) => value instanceof Markup],
  even: ['', (value) => remainder(value, 2) === 0],
  false: ['', (value) => value === false],
  float: ['', (value) => value instanceof Float],
  ge: comparison('>='),
  '>=': comparison('>='),
  greaterthan: greater,
  gt: greater,
  '>': greater,
  in: ['seq', (value, container) => contains(container as Value, value)],
  integer: ['', (value) => typeof value === 'number'],
  iterable: ['', isIterable],
  le: comparison('<='),
  '<=': comparison('<='),
  lessthan: less,
  lt: less,
  '<': less,
  lower: ['', (value) => isCase(value, /[\p{Uppercase}\p{Lt}]/u)],
  mapping: ['', (value) => value instanceof Dict],
  ne: comparison('!='),
  '!=': comparison('!='),
  none: ['', (value) => value === null],
  number: ['', (value) => toNumber(value) !== undefined],
  odd: ['', (value) => Math.abs(remainder(value, 2)) === 1],
  sameas: [
    'other',
    (value, other) =>
      value === other ||
      (value instanceof Text && other instanceof Text && value.value === other.value),
  ],
  sequence: ['', isSequence],
  string: ['', (value) => value instanceof Text],
  true: ['', (value) => value === true],
  undefined: ['', (value) => value instanceof Undefined],
  upper: ['', (value) => isCase(value, /[\p{Lowercase}\p{Lt}]/u)],
};

function isCase(value: Value, wrong: RegExp): boolean {
  const { value: shown } = soft(value);
  return /\p{Cased}/u.test(shown) && !wrong.test(shown);
}
