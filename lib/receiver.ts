import { invalid } from './errors';

interface Class {
  readonly prototype: object;
  [Symbol.hasInstance](value: unknown): boolean;
}

type Method = (this: unknown, ...args: unknown[]) => unknown;

const AsyncFunction = (async () => {}).constructor;

/**
 * Makes all methods and accessors of a class throw ERR_INVALID_ARGUMENT if `this` is not an object
 * of the class, or reject if they are async. Without it, reading a private field throws a TypeError.
 */
export function checkReceiver(type: Class, expected: string): void {
  const checked = (method: Method): Method => {
    const isAsync = method instanceof AsyncFunction;
    const wrapper: Method = function (...args) {
      if (this instanceof type) return method.apply(this, args);
      const error = invalid('this', expected, this);
      if (isAsync) return Promise.reject(error);
      throw error;
    };
    const { name, length } = method;
    return Object.defineProperties(wrapper, { name: { value: name }, length: { value: length } });
  };
  for (const key of Reflect.ownKeys(type.prototype)) {
    if (key === 'constructor') continue;
    const property = Object.getOwnPropertyDescriptor(type.prototype, key) as PropertyDescriptor;
    if (property.get) property.get = checked(property.get);
    else property.value = checked(property.value);
    Object.defineProperty(type.prototype, key, property);
  }
}
