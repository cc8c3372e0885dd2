// Shared by the error tests.

import { errorOf } from './devices';

// biome-ignore lint/suspicious/noExplicitAny: what a caller without types may pass
export type Anything = any;

export async function expectCode(work: () => unknown, code: string, ...inMessage: (string | RegExp)[]): Promise<void> {
  const error = await errorOf(work);
  expect({ code: error.code, message: error.message }).toEqual({ code, message: expect.any(String) });
  expect(Object.prototype.toString.call(error)).toBe('[object Error]');
  for (const part of inMessage) expect(error.message).toMatch(part);
}

/** `work` fails with exactly this message, by default for an argument. */
export async function expectMessage(
  work: () => unknown,
  message: string,
  code = 'ERR_INVALID_ARGUMENT',
): Promise<void> {
  const error = await errorOf(work);
  expect([error.code, error.message]).toEqual([code, message]);
}

export const invalid = 'ERR_INVALID_ARGUMENT';
export const notAnything = [undefined, null, 5, 'x', true, Symbol('s'), {}, [], () => 1];
export const show = (value: unknown): string => (typeof value === 'object' ? JSON.stringify(value) : String(value));
