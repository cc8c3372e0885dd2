import { nested, pythonError, spend } from './fuel';
import type { Scope } from './scope';
import { Text } from './text';
import { type Arguments, Dict, orElse, PyObject, Tuple, Undefined, type Value } from './values';

/** The parts of a macro that the parser knows. */
export interface MacroDefinition {
  name: string;
  parameters: { name: string; fallback: ((scope: Scope) => Value) | undefined }[];
  /** Which of caller, kwargs and varargs the body uses. */
  uses: ReadonlySet<string>;
  run(scope: Scope): Text;
}

export class Macro extends PyObject {
  readonly type = 'Macro';
  readonly #definition: MacroDefinition;
  readonly #open: () => Scope;

  /** `open` creates the scope of a call. */
  constructor(definition: MacroDefinition, open: () => Scope) {
    super();
    this.#definition = definition;
    this.#open = open;
  }

  override get isCallable(): boolean {
    return true;
  }

  override attribute(name: string): Value | undefined {
    const { parameters, uses } = this.#definition;
    if (name === 'name') return Text.plain(this.#definition.name);
    if (name === 'arguments') return new Tuple(parameters.map((one) => Text.plain(one.name)));
    if (name === 'catch_kwargs') return uses.has('kwargs');
    if (name === 'catch_varargs') return uses.has('varargs');
    return name === 'caller' ? uses.has('caller') : undefined;
  }

  override call(args: Arguments): Value {
    const { name: macro, parameters, uses, run } = this.#definition;
    spend(40);
    const named = new Map(args.named);
    const scope = this.#open();
    parameters.forEach(({ name, fallback }, i) => {
      let value = args.positional[i];
      if (value === undefined) {
        value = named.get(name);
        named.delete(name);
      }
      if (value === undefined) value = fallback?.(scope);
      scope.set(
        name,
        orElse(value, () => new Undefined(`parameter '${name}' was not provided`)),
      );
    });
    if (uses.has('caller') && !parameters.some(({ name }) => name === 'caller')) {
      scope.set(
        'caller',
        orElse(named.get('caller'), () => new Undefined('No caller defined')),
      );
      named.delete('caller');
    }
    if (uses.has('kwargs')) {
      const rest = new Dict();
      // A name may come from the conversation: macro(**message).
      for (const [name, value] of named) rest.set(Text.user(name), value);
      scope.set('kwargs', rest);
    } else if (named.size > 0) {
      const [name] = named.keys();
      throw pythonError(`macro '${macro}' takes no keyword argument '${name}'`);
    }
    if (uses.has('varargs')) {
      scope.set('varargs', new Tuple(args.positional.slice(parameters.length)));
    } else if (args.positional.length > parameters.length) {
      const count = parameters.length;
      throw pythonError(`macro '${macro}' takes not more than ${count} argument(s)`);
    }
    return nested(() => run(scope));
  }
}
