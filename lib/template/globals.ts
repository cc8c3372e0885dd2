import { bind, integer, text } from './builtin';
import { pythonError, spend, TemplateError } from './fuel';
import { strftime } from './strftime';
import { Text } from './text';
import {
  type Arguments,
  Callable,
  Dict,
  elements,
  Namespace,
  PyObject,
  Range,
  toText,
  type Value,
} from './values';

// As Jinja's sandbox.
const MAX_RANGE = 100_000;

function range(args: Arguments): Range {
  const [first, last, by] = bind('range', 'start stop? step?', args);
  const start = last === undefined ? 0 : integer(first, 0);
  const stop = last === undefined ? integer(first, 0) : integer(last, 0);
  const step = integer(by, 1);
  if (step === 0) throw pythonError('range() arg 3 must not be zero');
  const made = new Range(start, stop, step);
  if (made.size > MAX_RANGE) {
    throw new TemplateError('limit', `has a range of ${made.size} elements (limit ${MAX_RANGE})`);
  }
  return made;
}

/** The arguments of dict() and namespace(): a dict or pairs, and named values. */
function entries(args: Arguments): [Value, Value][] {
  const [source] = args.positional;
  const pairs =
    source instanceof Dict
      ? source.entries()
      : source === undefined
        ? []
        : elements(source).map((pair) => {
            const [key, value, ...rest] = elements(pair);
            if (key === undefined || value === undefined || rest.length > 0) {
              throw pythonError('an element of the dict is not a pair');
            }
            return [key, value] as [Value, Value];
          });
  // A name may come from the conversation: dict(**message).
  return [...pairs, ...[...args.named].map(([k, v]) => [Text.user(k), v] as [Value, Value])];
}

function dict(args: Arguments): Dict {
  const made = new Dict();
  for (const [key, value] of entries(args)) made.set(key, value);
  return made;
}

function namespace(args: Arguments): Namespace {
  const made = new Namespace();
  for (const [key, value] of entries(args)) made.values.set(text(key).value, value);
  return made;
}

class Cycler extends PyObject {
  readonly type = 'Cycler';
  readonly #items: readonly Value[];
  #at = 0;
  constructor(items: readonly Value[]) {
    super();
    if (items.length === 0) throw pythonError('at least one item has to be provided');
    this.#items = items;
  }
  override attribute(name: string): Value | undefined {
    const current = this.#items[this.#at] as Value;
    if (name === 'current') return current;
    const steps: Record<string, () => number> = {
      next: () => (this.#at + 1) % this.#items.length,
      reset: () => 0,
    };
    const step = Object.hasOwn(steps, name) ? steps[name] : undefined;
    if (step === undefined) return undefined;
    return new Callable(() => {
      const before = this.#items[this.#at] as Value;
      this.#at = step();
      return name === 'next' ? before : null;
    });
  }
}

function joiner(args: Arguments): Callable {
  const [separator = Text.plain(', ')] = bind('joiner', 'sep?', args);
  let used = false;
  return new Callable(() => {
    if (used) return separator;
    used = true;
    return Text.plain('');
  });
}

/** The functions that a template finds without being given them. */
export function globals(now: Date): Map<string, Value> {
  const functions: Record<string, (args: Arguments) => Value> = {
    range,
    dict,
    namespace,
    joiner,
    cycler: (args) => new Cycler(args.positional),
    raise_exception: (args) => {
      const [message] = bind('raise_exception', 'message', args);
      throw new TemplateError('raised', toText(message as Value).value);
    },
    strftime_now: (args) => {
      const [format] = bind('strftime_now', 'format', args);
      spend(8 * (1 + text(format).length));
      return text(format).mapWhole((part) => strftime(now, part));
    },
  };
  return new Map(Object.entries(functions).map(([name, run]) => [name, new Callable(run)]));
}
