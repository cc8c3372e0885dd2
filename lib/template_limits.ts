import { Environment, Interpreter, Template } from '@huggingface/jinja';
import { invalidCheckpoint } from './errors';
import { withTimeLimit } from './time_limit';

// A chat template is a program. Without limits, a malicious one could block the event loop or
// exhaust the memory of the process. No real template comes near these limits.
const MAX_MILLISECONDS = 5000;
const MAX_RANGE = 100_000;
const MAX_STEPS = 1_000_000; // statements and expressions; a message needs about a hundred
const MAX_CREATED = 2 ** 24; // array elements and string characters created by all steps
const EXTRA_PER_CHARACTER = 256; // added to both limits for each character of the messages

/** A limit was exceeded. The message completes "the chat template ...". */
class LimitError extends Error {}

// The library's declarations do not have the types of these members.
interface Evaluator {
  evaluate(statement: { type: string } | undefined, environment: unknown): { value: unknown };
  run(program: unknown): { value: unknown };
}
const BaseInterpreter = Interpreter as unknown as new (environment: unknown) => Evaluator;

class LimitedInterpreter extends BaseInterpreter {
  readonly #maxSteps: number;
  readonly #maxCreated: number;
  #steps = 0;
  #created = 0;
  #lastLength = 0; // length of the value that was evaluated last

  constructor(environment: unknown, characters: number) {
    super(environment);
    this.#maxSteps = MAX_STEPS + characters * EXTRA_PER_CHARACTER;
    this.#maxCreated = MAX_CREATED + characters * EXTRA_PER_CHARACTER;
  }

  override evaluate(
    statement: { type: string } | undefined,
    environment: unknown,
  ): { value: unknown } {
    this.#steps++;
    if (this.#steps > this.#maxSteps) {
      throw new LimitError(`takes more than ${this.#maxSteps} steps`);
    }
    const result = super.evaluate(statement, environment);
    const rightLength = this.#lastLength;
    const length = Number((result.value as { length?: unknown } | null | undefined)?.length) || 0;
    this.#lastLength = length;
    const { type, computed } = (statement ?? {}) as { type?: string; computed?: boolean };
    // The sum of two strings shares its left operand. Its right operand was evaluated last.
    const isSum = type === 'BinaryExpression' && typeof result.value === 'string';
    // An identifier or a member that is not computed returns a value that exists already.
    const exists = type === 'Identifier' || (type === 'MemberExpression' && !computed);
    if (isSum) this.#created += Math.min(length, rightLength);
    else if (!exists) this.#created += length;
    if (this.#created > this.#maxCreated) {
      throw new LimitError(
        `takes too much memory: more than ${this.#maxCreated} array elements and characters`,
      );
    }
    return result;
  }
}

/** Replaces the library's function, which allocates a range of any length. */
function range(first: number, last: number | undefined, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last];
  const length = Math.ceil((stop - start) / step);
  if (!(length <= MAX_RANGE)) {
    throw new LimitError(`has a range of ${length} elements; the limit is ${MAX_RANGE}`);
  }
  return Array.from({ length: Math.max(0, length) }, (_, i) => start + i * step);
}

// The library does not export its strftime_now, so it is called through a template.
const strftime = new Template('{{ strftime_now(format) }}');

/**
 * `template.render(variables)` within limits on time and memory. Throws ERR_INVALID_CHECKPOINT,
 * with `path` in the message, if the template exceeds one.
 */
export function renderLimited(
  path: string,
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
  try {
    return withTimeLimit(`${path}: the chat template`, MAX_MILLISECONDS, () =>
      String(interpreter.run(template.parsed).value),
    );
  } catch (error) {
    if (!(error instanceof LimitError)) throw error;
    throw invalidCheckpoint(path, `the chat template ${error.message}`);
  }
}
