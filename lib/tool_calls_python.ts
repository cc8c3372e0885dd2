/** A call of a function with its arguments as a JSON object. */
export interface PythonCall {
  name: string;
  arguments: string;
}

const TOKEN =
  /\s+|#[^\n]*|([A-Za-z_][\w.]*)|(-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|([()[\]{},:=])/sy;

const ESCAPES: Readonly<Record<string, string>> = {
  n: '\n',
  t: '\t',
  r: '\r',
  '0': '\0',
  b: '\b',
  f: '\f',
  '\n': '',
};
const NAMES: ReadonlyMap<string, string> = new Map([
  ['True', 'true'],
  ['False', 'false'],
  ['None', 'null'],
]);
const JSON_NUMBER = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/;
const MAX_DEPTH = 100;

type Token = { kind: 'name' | 'number' | 'string' | 'mark'; text: string };

function tokenize(code: string): Token[] | null {
  const tokens: Token[] = [];
  for (TOKEN.lastIndex = 0; TOKEN.lastIndex < code.length; ) {
    const match = TOKEN.exec(code);
    if (match === null) return null;
    const [, name, number, string, mark] = match;
    if (name !== undefined) tokens.push({ kind: 'name', text: name });
    if (number !== undefined) tokens.push({ kind: 'number', text: number });
    if (string !== undefined) tokens.push({ kind: 'string', text: string });
    if (mark !== undefined) tokens.push({ kind: 'mark', text: mark });
  }
  return tokens;
}

/**
 * Reads Python code that only calls functions: `f(a=1)`, several below each other or in a list, also
 * within `print(...)`. Arguments have names, and their values are literals. Numbers keep their
 * digits. Returns null for other code, also for a number that JSON writes otherwise. `module.f` is a
 * call of `f`.
 */
export function readPythonCalls(code: string): PythonCall[] | null {
  const tokens = tokenize(code);
  if (tokens === null) return null;
  const reader = new Reader(tokens);
  try {
    return reader.calls();
  } catch (error) {
    if (error instanceof Unsupported) return null;
    throw error;
  }
}

/** Code that is not only calls. */
class Unsupported extends Error {}

function unsupported(): never {
  throw new Unsupported();
}

class Reader {
  readonly #tokens: readonly Token[];
  #next = 0;
  #depth = 0;

  constructor(tokens: readonly Token[]) {
    this.#tokens = tokens;
  }

  calls(): PythonCall[] {
    const calls: PythonCall[] = [];
    while (this.#next < this.#tokens.length) {
      if (this.#skip('[')) this.#list(']', () => calls.push(this.#call()));
      else calls.push(this.#call());
    }
    if (calls.length === 0) unsupported();
    return calls;
  }

  #call(): PythonCall {
    const name = this.#take('name');
    this.#expect('(');
    if (name === 'print') {
      const call = this.#call();
      this.#expect(')');
      return call;
    }
    const entries = new Map<string, string>();
    this.#list(')', () => {
      const key = this.#take('name');
      this.#expect('=');
      entries.set(key, this.#value());
    });
    return { name: name.slice(name.lastIndexOf('.') + 1), arguments: objectText(entries) };
  }

  /** A literal as JSON. */
  #value(): string {
    if (++this.#depth > MAX_DEPTH) unsupported();
    const value = this.#literal();
    this.#depth--;
    return value;
  }

  #literal(): string {
    const token = this.#tokens[this.#next++];
    switch (token?.kind) {
      case 'number':
        if (!JSON_NUMBER.test(token.text)) unsupported();
        return token.text;
      case 'string':
        return JSON.stringify(unquote(token.text));
      case 'name':
        return NAMES.get(token.text) ?? unsupported();
      default:
    }
    if (token?.text === '[') {
      const items: string[] = [];
      this.#list(']', () => items.push(this.#value()));
      return `[${items.join()}]`;
    }
    if (token?.text !== '{') unsupported();
    const entries = new Map<string, string>();
    this.#list('}', () => {
      const key = unquote(this.#take('string'));
      this.#expect(':');
      entries.set(key, this.#value());
    });
    return objectText(entries);
  }

  /** Reads items, divided by commas, until `end`. */
  #list(end: string, item: () => void): void {
    while (!this.#skip(end)) {
      item();
      if (this.#skip(',')) continue;
      this.#expect(end);
      return;
    }
  }

  #take(kind: Token['kind']): string {
    const token = this.#tokens[this.#next++];
    if (token?.kind !== kind) unsupported();
    return token.text;
  }

  #expect(mark: string): void {
    if (!this.#skip(mark)) unsupported();
  }

  #skip(mark: string): boolean {
    const token = this.#tokens[this.#next];
    if (token?.kind !== 'mark' || token.text !== mark) return false;
    this.#next++;
    return true;
  }
}

/** JSON of an object whose values are JSON. */
function objectText(entries: ReadonlyMap<string, string>): string {
  const items = Array.from(entries, ([key, value]) => `${JSON.stringify(key)}:${value}`);
  return `{${items.join()}}`;
}

function unquote(literal: string): string {
  return literal
    .slice(1, -1)
    .replace(/\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))/gs, (whole, hex, unicode, char) => {
      if (char === undefined) return String.fromCharCode(Number.parseInt(hex ?? unicode, 16));
      return ESCAPES[char] ?? (/["'\\]/.test(char) ? char : whole);
    });
}
