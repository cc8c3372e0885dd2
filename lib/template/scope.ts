import { spend } from './fuel';
import { Undefined, type Value } from './values';

/** The variables of a block, inside the variables of the block around it. */
export class Scope {
  readonly #variables: Map<string, Value>;
  readonly #outer: Scope | undefined;

  constructor(outer?: Scope, variables = new Map<string, Value>()) {
    this.#outer = outer;
    this.#variables = variables;
  }

  get(name: string): Value {
    for (let scope: Scope | undefined = this; scope !== undefined; scope = scope.#outer) {
      spend(1);
      const value = scope.#variables.get(name);
      if (value !== undefined) return value;
    }
    return new Undefined(`'${name}' is undefined`);
  }

  set(name: string, value: Value): void {
    this.#variables.set(name, value);
  }
}
