/**
 * Why a template failed:
 * - raised: the template called raise_exception;
 * - python: Python's jinja2 raises an error here too;
 * - syntax: the template is malformed;
 * - unsupported: Python's jinja2 has this construct, and this interpreter does not;
 * - limit: the template exceeds a limit.
 */
export type Failure = 'raised' | 'python' | 'syntax' | 'unsupported' | 'limit';

/** A failure of a template. `message` does not name the template. */
export class TemplateError extends Error {
  readonly failure: Failure;

  constructor(failure: Failure, message: string) {
    super(message);
    this.failure = failure;
  }
}

/** An error that Python's jinja2 raises too. */
export function pythonError(message: string): TemplateError {
  return new TemplateError('python', message);
}

/** `what` names the construct. */
export function unsupported(what: string): TemplateError {
  return new TemplateError('unsupported', what);
}

export function syntaxError(message: string, line: number): TemplateError {
  return new TemplateError('syntax', `line ${line}: ${message}`);
}

// A macro call, a nested list or a nested expression is one level. Python allows about as many.
const MAX_DEPTH = 200;
const CHARACTERS_PER_UNIT = 16;
const COMPARISONS_PER_UNIT = 500;

// Rendering is synchronous, so one counter serves every template.
let remaining = 0;
let budget = 0;
let depth = 0;

/** Uses fuel. A unit is about one operation, or one element of a list. */
export function spend(units: number): void {
  remaining -= units;
  if (!(remaining >= 0)) {
    throw new TemplateError('limit', `takes more than ${budget} steps`);
  }
}

/** Uses the fuel for reading or creating this many characters. */
export function spendCharacters(count: number): void {
  spend(1 + count / CHARACTERS_PER_UNIT);
}

/**
 * Uses the fuel for a search. In the worst case V8 compares the whole `wanted` at each place, and a
 * unit pays for some hundred comparisons.
 */
export function spendSearch(length: number, wanted: number): void {
  spend(1 + length / CHARACTERS_PER_UNIT + (length * wanted) / COMPARISONS_PER_UNIT);
}

/** Calls `work` one level deeper. */
export function nested<T>(work: () => T): T {
  if (depth >= MAX_DEPTH) throw new TemplateError('limit', `nests deeper than ${MAX_DEPTH} levels`);
  depth++;
  try {
    return work();
  } finally {
    depth--;
  }
}

/** Calls `work`, whose size is that of the caller's own data. */
export function withoutLimit<T>(work: () => T): T {
  return withFuel(Number.POSITIVE_INFINITY, work);
}

/** Calls `work`, which may spend `units`. */
export function withFuel<T>(units: number, work: () => T): T {
  const outer = { remaining, budget, depth };
  remaining = units;
  budget = units;
  depth = 0;
  try {
    return work();
  } catch (error) {
    // The caller may have left less stack than the levels need.
    const isOverflow = error instanceof RangeError && /call stack/.test(error.message);
    throw isOverflow ? new TemplateError('limit', 'nests too deeply for the stack') : error;
  } finally {
    ({ remaining, budget, depth } = outer);
  }
}
