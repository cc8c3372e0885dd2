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
const NAMES: ReadonlyMap<string, unknown> = new Map<string, unknown>([
  ['True', true],
  ['False', false],
  ['None', null],
]);
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
 * within `print(...)`. Arguments have names, and their values are literals. Returns null for other
 * code. `module.f` is a call of `f`.
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
    if (calls.length === 0) throw new Unsupported();
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
    const entries: [string, unknown][] = [];
    this.#list(')', () => {
      const key = this.#take('name');
      this.#expect('=');
      entries.push([key, this.#value()]);
    });
    const args = JSON.stringify(Object.fromEntries(entries));
    return { name: name.slice(name.lastIndexOf('.') + 1), arguments: args };
  }

  #value(): unknown {
    if (++this.#depth > MAX_DEPTH) throw new Unsupported();
    const value = this.#literal();
    this.#depth--;
    return value;
  }

  #literal(): unknown {
    const token = this.#tokens[this.#next++];
    switch (token?.kind) {
      case 'number':
        return Number(token.text);
      case 'string':
        return unquote(token.text);
      case 'name':
        if (!NAMES.has(token.text)) throw new Unsupported();
        return NAMES.get(token.text);
      default:
    }
    if (token?.text === '[') {
      const items: unknown[] = [];
      this.#list(']', () => items.push(this.#value()));
      return items;
    }
    if (token?.text !== '{') throw new Unsupported();
    const entries: [string, unknown][] = [];
    this.#list('}', () => {
      const key = unquote(this.#take('string'));
      this.#expect(':');
      entries.push([key, this.#value()]);
    });
    return Object.fromEntries(entries);
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
    if (token?.kind !== kind) throw new Unsupported();
    return token.text;
  }

  #expect(mark: string): void {
    if (!this.#skip(mark)) throw new Unsupported();
  }

  #skip(mark: string): boolean {
    const token = this.#tokens[this.#next];
    if (token?.kind !== 'mark' || token.text !== mark) return false;
    this.#next++;
    return true;
  }
}

function unquote(literal: string): string {
  return literal
    .slice(1, -1)
    .replace(/\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))/gs, (whole, hex, unicode, char) => {
      if (char === undefined) return String.fromCharCode(Number.parseInt(hex ?? unicode, 16));
      return ESCAPES[char] ?? (/["'\\]/.test(char) ? char : whole);
    });
}
