import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { DiffqkvError } from './errors';
import { withTimeLimit } from './time_limit';

// A template is a program. These are limits that no real one comes near; past them one that was made to hangs the event loop, or
// ends the process for lack of memory.
const MAX_MILLISECONDS = 5000;
const MAX_RANGE = 100_000;
const MAX_STEPS = 1_000_000; // statements and expressions evaluated, some hundred a message
const MAX_CREATED = 2 ** 24; // elements of the arrays and characters of the strings that they gave, taken together
const PER_CHARACTER = 256; // and so many more for each character of the messages

const tooMuch = (what: string) =>
  new DiffqkvError(
    'ERR_INVALID_CHECKPOINT',
    `the chat template takes too ${what}: it may not come to an end`,
  );

// The library's declarations lose the types of these on their way.
interface Evaluator {
  evaluate(statement: { type: string } | undefined, environment: unknown): { value: unknown };
  run(program: unknown): { value: unknown };
}
const BaseInterpreter = Interpreter as unknown as new (environment: unknown) => Evaluator;

class LimitedInterpreter extends BaseInterpreter {
  #steps: number;
  #created: number;
  #last = 0; // the length of what was evaluated last

  constructor(environment: unknown, characters: number) {
    super(environment);
    this.#steps = MAX_STEPS + characters * PER_CHARACTER;
    this.#created = MAX_CREATED + characters * PER_CHARACTER;
  }

  override evaluate(
    statement: { type: string } | undefined,
    environment: unknown,
  ): { value: unknown } {
    if (--this.#steps < 0) throw tooMuch('many steps');
    const result = super.evaluate(statement, environment);
    const before = this.#last;
    const length = Number((result.value as { length?: unknown } | null | undefined)?.length) || 0;
    this.#last = length;
    const { type, computed } = (statement ?? {}) as { type?: string; computed?: boolean };
    // A name or a member gives what is there already; a sum of strings shares its left side, and its right side came last.
    const isSum = type === 'BinaryExpression' && typeof result.value === 'string';
    if (isSum) this.#created -= Math.min(length, before);
    else if (type !== 'Identifier' && (type !== 'MemberExpression' || computed))
      this.#created -= length;
    if (this.#created < 0) throw tooMuch('much memory');
    return result;
  }
}

/** In place of the library's, which fills the memory where a long one is asked for. */
function range(first: number, last: number | undefined, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last];
  const length = Math.ceil((stop - start) / step);
  if (!(length <= MAX_RANGE)) throw tooMuch(`long a range (${length}; the limit is ${MAX_RANGE})`);
  return Array.from({ length: Math.max(0, length) }, (_, i) => start + i * step);
}

const strftime = new Template('{{ strftime_now(format) }}'); // the library does not export its own

/** `template.render(variables)` within the limits: past them ERR_INVALID_CHECKPOINT. `what` stands in its message. */
export function renderLimited(
  what: string,
  template: Template,
  variables: Record<string, unknown>,
): string {
  const environment = new Environment();
  const globals = {
    ...{ true: true, false: false, none: null, True: true, False: false, None: null, range },
    raise_exception: (message: unknown) => {
      throw new Error(String(message));
    },
    strftime_now: (format: unknown) => strftime.render({ format }),
    ...variables,
  };
  for (const [name, value] of Object.entries(globals)) environment.set(name, value);
  const characters = JSON.stringify(variables).length;
  const interpreter = new LimitedInterpreter(environment, characters);
  return withTimeLimit(what, MAX_MILLISECONDS, () =>
    String(interpreter.run(template.parsed).value),
  );
}
