import { DiffqkvError, invalid, invalidArgument } from './errors';

/** A JSON schema. */
export type JsonSchema = Readonly<Record<string, unknown>> | boolean;

/**
 * A copy of a JSON schema. Throws ERR_INVALID_ARGUMENT unless it consists of JSON values: an object
 * of a schema library has functions, which JSON would omit. `name` is the argument in messages.
 */
export function copySchema(name: string, schema: unknown): JsonSchema {
  if (typeof schema === 'boolean') return schema;
  if (typeof schema !== 'object' || schema === null || Array.isArray(schema)) {
    throw invalid(name, 'a JSON schema, an object of JSON values', schema);
  }
  const paths = new Map<unknown, string>();
  function checked(this: Record<string, unknown>, key: string, converted: unknown): unknown {
    const value = this[key]; // before toJSON
    const parent = paths.get(this);
    const path = parent === undefined ? name : `${parent}.${key}`;
    const problem = notJson(value);
    if (problem !== undefined) {
      throw invalidArgument(
        `${name} must be a JSON schema, an object of JSON values, and ${path} is ${problem}: ` +
          'convert a schema of a library, such as zod, to a JSON schema',
      );
    }
    if (typeof value === 'object') paths.set(value, path);
    return converted;
  }
  try {
    return JSON.parse(JSON.stringify(schema, checked));
  } catch (error) {
    if (error instanceof DiffqkvError) throw error;
    throw invalidArgument(`${name} cannot be written as JSON: ${(error as Error).message}`);
  }
}

/** What a value is if JSON has no such value. */
function notJson(value: unknown): string | undefined {
  if (typeof value === 'function') return 'a function';
  if (typeof value === 'symbol' || typeof value === 'bigint') return `a ${typeof value}`;
  if (typeof value === 'number' && !Number.isFinite(value)) return String(value);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) return undefined;
  // Not a comparison with Object.prototype: an object may come from another realm.
  const prototype = Object.getPrototypeOf(value);
  if (prototype === null || Object.getPrototypeOf(prototype) === null) return undefined;
  const { name } = prototype.constructor ?? {};
  return typeof name === 'string' && name !== '' ? `an instance of ${name}` : 'no plain object';
}
