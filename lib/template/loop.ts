import { bind } from './builtin';
import { pythonError, spend } from './fuel';
import {
  type Arguments,
  Callable,
  equals,
  orElse,
  PyObject,
  Undefined,
  type Value,
} from './values';

/** The variable `loop` of a for block. */
export class Loop extends PyObject {
  readonly type = 'LoopContext';
  /** Index of the current item. */
  index = 0;
  readonly #items: readonly Value[];
  readonly #depth: number;
  readonly #recurse: ((items: Value, depth: number) => Value) | undefined;
  #last: readonly Value[] | undefined;

  /** `recurse` renders the block for other items, one level deeper. */
  constructor(
    items: readonly Value[],
    depth: number,
    recurse: ((items: Value, depth: number) => Value) | undefined,
  ) {
    super();
    this.#items = items;
    this.#depth = depth;
    this.#recurse = recurse;
  }

  override get isCallable(): boolean {
    return this.#recurse !== undefined;
  }

  override call(args: Arguments): Value {
    if (this.#recurse === undefined) {
      throw pythonError("The loop must have the 'recursive' marker to be called recursively.");
    }
    const [items] = bind('loop', 'iterable', args);
    return this.#recurse(items as Value, this.#depth + 1);
  }

  override attribute(name: string): Value | undefined {
    const { index } = this;
    const count = this.#items.length;
    switch (name) {
      case 'index':
        return index + 1;
      case 'index0':
        return index;
      case 'revindex':
        return count - index;
      case 'revindex0':
        return count - index - 1;
      case 'first':
        return index === 0;
      case 'last':
        return index === count - 1;
      case 'length':
        return count;
      case 'depth':
        return this.#depth + 1;
      case 'depth0':
        return this.#depth;
      case 'previtem':
        return orElse(this.#items[index - 1], () => new Undefined('there is no previous item'));
      case 'nextitem':
        return orElse(this.#items[index + 1], () => new Undefined('there is no next item'));
      case 'cycle':
        return new Callable(({ positional }) => {
          if (positional.length === 0) throw pythonError('no items for cycling given');
          return positional[index % positional.length] as Value;
        });
      case 'changed':
        return new Callable(({ positional }) => this.#changed(positional));
      default:
        return undefined;
    }
  }

  #changed(values: readonly Value[]): boolean {
    spend(values.length);
    const last = this.#last;
    this.#last = values;
    return (
      last === undefined ||
      last.length !== values.length ||
      values.some((value, i) => !equals(value, last[i] as Value))
    );
  }
}
