import { invalid, invalidArgument } from '../errors';
import { Text } from './text';
import { Dict, Float, type Value } from './values';

const MAX_DEPTH = 100;

// These roles are part of the language of chat templates. Some templates make a control token of
// the role, such as <|user|>, so the role counts as text of the template. Any other role is text of
// the user.
const ROLES = new Set([
  ...['system', 'developer', 'user', 'assistant', 'model', 'tool', 'function', 'ipython'],
  ...['observation', 'environment', 'context', 'documents', 'tool_response', 'tool_results'],
]);

/** Converts values of JavaScript to values of a template: whatever JSON has. */
export class Converter {
  /** Characters and values that were converted. */
  characters = 0;
  values = 0;
  readonly #known = new Map<object, Value>();
  readonly #open = new Set<object>();

  /** `name` is the argument that errors name. Strings become text of the user. */
  convert(name: string, value: unknown, depth = 0): Value {
    this.values++;
    if (value === null || typeof value === 'boolean') return value;
    if (typeof value === 'string') {
      this.characters += value.length;
      return Text.user(value);
    }
    if (typeof value === 'number')
      return Number.isSafeInteger(value) ? value + 0 : new Float(value);
    if (typeof value !== 'object') throw invalid(name, 'a value that JSON has', value);
    const known = this.#known.get(value);
    if (known !== undefined) return known;
    if (this.#open.has(value)) throw invalidArgument(`${name} contains itself`);
    if (depth >= MAX_DEPTH) throw invalidArgument(`${name} nests deeper than ${MAX_DEPTH} levels`);
    this.#open.add(value);
    const result = Array.isArray(value)
      ? value.map((element, i) => this.convert(`${name}[${i}]`, element ?? null, depth + 1))
      : this.#dict(name, value, depth);
    this.#open.delete(value);
    this.#known.set(value, result);
    return result;
  }

  #dict(name: string, value: object, depth: number): Dict {
    const dict = new Dict();
    for (const [key, element] of Object.entries(value)) {
      if (element === undefined) continue;
      this.characters += key.length;
      dict.set(Text.user(key), this.convert(`${name}.${key}`, element, depth + 1));
    }
    return dict;
  }

  /** Like `convert`, for the messages of a conversation. */
  messages(messages: readonly { role: string }[]): Value {
    return messages.map((message, i) => {
      const dict = this.convert(`messages[${i}]`, message) as Dict;
      if (ROLES.has(message.role)) dict.set(Text.plain('role'), Text.plain(message.role));
      return dict;
    });
  }
}
