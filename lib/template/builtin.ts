import { pythonError, unsupported } from './fuel';
import { Text } from './text';
import {
  type Arguments,
  Markup,
  toInt,
  toNumber,
  toText,
  typeName,
  Undefined,
  type Value,
} from './values';

/**
 * A method, filter, test or function of the language: the names of its parameters, and what it
 * does. A `?` after a name means optional; an omitted argument is undefined.
 */
export type Builtin<Self> = readonly [
  parameters: string,
  run: (self: Self, ...args: (Value | undefined)[]) => Value,
];

/** Assigns arguments to parameters, as a Python function does. */
export function bind(name: string, parameters: string, args: Arguments): (Value | undefined)[] {
  const names = parameters === '' ? [] : parameters.split(' ');
  const { positional, named } = args;
  if (positional.length > names.length) {
    const count = names.length;
    throw pythonError(`${name}() takes ${count} arguments but ${positional.length} were given`);
  }
  const bound: (Value | undefined)[] = names.map((_, i) => positional[i]);
  for (const [key, value] of named) {
    const i = names.findIndex((parameter) => parameter.replace('?', '') === key);
    if (i < 0) throw pythonError(`${name}() got an unexpected keyword argument '${key}'`);
    if (bound[i] !== undefined) throw pythonError(`${name}() got multiple values for '${key}'`);
    bound[i] = value;
  }
  names.forEach((parameter, i) => {
    if (bound[i] === undefined && !parameter.endsWith('?')) {
      throw pythonError(`${name}() missing a required argument: '${parameter}'`);
    }
  });
  return bound;
}

export function call<Self>(
  name: string,
  builtin: Builtin<Self>,
  self: Self,
  args: Arguments,
): Value {
  return builtin[1](self, ...bind(name, builtin[0], args));
}

/** An argument that has to be a string. */
export function text(value: Value | undefined): Text {
  if (value instanceof Text) return value;
  if (value instanceof Undefined) throw value.fail();
  throw pythonError(`must be str, not ${typeName(value ?? null)}`);
}

/** An argument that has to be an int; `fallback` if it is omitted or None. */
export function integer(value: Value | undefined, fallback: number): number {
  if (value === undefined || value === null) return fallback;
  const number = toInt(value);
  if (number !== undefined) return number;
  if (value instanceof Undefined) throw value.fail();
  throw pythonError(`'${typeName(value)}' object cannot be interpreted as an integer`);
}

/** The string on which a filter works: any value is printed. */
export function soft(value: Value): Text {
  if (value instanceof Markup) throw unsupported('a filter after the filter safe or escape');
  return toText(value);
}

export function numeric(value: Value): number {
  const number = toNumber(value);
  if (number === undefined) {
    if (value instanceof Undefined) throw value.fail();
    throw pythonError(`must be a real number, not ${typeName(value)}`);
  }
  return number;
}
