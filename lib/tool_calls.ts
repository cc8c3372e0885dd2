import { randomBytes } from 'node:crypto';
import { readPythonCalls } from './tool_calls_python';

/** A call of a function that a generated text asks for, as in the OpenAI API. */
export interface ToolCall {
  /** Chosen at random, unless the model gives one. */
  id: string;
  /** The only kind of call. */
  type: 'function';
  /** What is called. */
  function: {
    /** The name of a function of `tools`. */
    name: string;
    /** A JSON object as text. */
    arguments: string;
  };
}

/**
 * A part of a call. The first part of a call has `id`, `type` and the name of the function; the
 * `arguments` of all parts together are those of the call.
 */
export interface ToolCallDelta {
  /** Position of the call among those of the generation, including broken ones. */
  index: number;
  /** The id of the call, in its first part. */
  id?: string;
  /** 'function' in the first part. */
  type?: 'function';
  /** What is called. */
  function: {
    /** The name of the function, in the first part. */
    name?: string;
    /** A piece of the arguments. */
    arguments: string;
  };
}

/** What a piece of text is after calls were taken out of it. */
export interface ParsedText {
  text: string;
  toolCalls: ToolCallDelta[];
}

/** How the models of a family write calls. */
export interface ToolCallFormat {
  /** Whether the models with this chat template write calls so. */
  isUsedBy(template: string): boolean;
  /** What begins calls, anywhere in a text. */
  begins: readonly string[];
  /** What also begins calls, but only at the start of a text. It is the first part of a call. */
  beginsAtStart: readonly string[];
  /** Reads the calls that begin with `begin`. Throws Malformed. */
  read(input: Input, begin: string, sink: Sink): Reading;
  newId(): string;
}

const longId = () => `call_${randomBytes(12).toString('hex')}`;
// Mistral's chat templates reject an id of another length.
const shortId = () =>
  randomBytes(16)
    .toString('base64')
    .replace(/[^a-zA-Z0-9]/g, '')
    .slice(0, 9);

/** The formats. The first that a template uses is that of the checkpoint. */
const FORMATS: readonly ToolCallFormat[] = [
  {
    // Hermes, Qwen: <tool_call>{"name": ..., "arguments": {...}}</tool_call>
    isUsedBy: (template) => template.includes('<tool_call>') && !template.includes('<function='),
    begins: ['<tool_call>'],
    beginsAtStart: [],
    *read(input, _, sink) {
      yield* readObject(input, sink);
      yield* skip(input, '</tool_call>');
    },
    newId: longId,
  },
  {
    // Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or for each call
    // [TOOL_CALLS]name[ARGS]{...}, with [CALL_ID]id before [ARGS] in some versions
    isUsedBy: (template) => template.includes('[TOOL_CALLS]'),
    begins: ['[TOOL_CALLS]'],
    beginsAtStart: [],
    *read(input, _, sink) {
      yield* skipSpace(input);
      if (input.char === '[' || input.char === '{') yield* readList(input, sink);
      else yield* readNamed(input, sink);
    },
    newId: shortId,
  },
  {
    // Llama 3: {"name": ..., "parameters": {...}}, several divided by ;
    isUsedBy: (template) => /<\|python_tag\|>|"parameters": dictionary/.test(template),
    begins: ['<|python_tag|>'],
    beginsAtStart: ['{'],
    *read(input, begin, sink) {
      yield* readObject(input, sink, begin === '{' ? begin : '');
      while (yield* skip(input, ';')) yield* readObject(input, sink);
    },
    newId: longId,
  },
  {
    // Gemma: a block tool_code of Python calls, or JSON in a block or as the whole text
    isUsedBy: (template) => template.includes('<start_of_turn>'),
    begins: ['```tool_code'],
    beginsAtStart: ['```json', '{', '['],
    *read(input, begin, sink) {
      if (begin === '```tool_code') {
        const calls = readPythonCalls(yield* readUntil(input, '```')) ?? malformed();
        if (!calls.every(({ name }) => sink.has(name))) malformed();
        for (const call of calls) {
          sink.begin(call.name);
          sink.add(call.arguments);
          sink.end();
        }
        return;
      }
      yield* readList(input, sink, begin === '```json' ? '' : begin);
      yield* skip(input, '```');
    },
    newId: longId,
  },
];

/** The format of calls that a grammar demands: a JSON array of calls. */
export const forcedCalls: ToolCallFormat = {
  isUsedBy: () => false,
  begins: [],
  beginsAtStart: ['['],
  *read(input, begin, sink) {
    yield* readList(input, sink, begin);
  },
  newId: shortId,
};

/** The format of calls of a checkpoint by its chat template, or undefined. */
export function toolCallFormat(template: string): ToolCallFormat | undefined {
  return FORMATS.find((format) => format.isUsedBy(template));
}

/** Special tokens that are part of calls, so that a parser must see their texts. */
export const TOOL_CALL_TOKENS: readonly string[] = [
  '<|python_tag|>',
  '[TOOL_CALLS]',
  '[ARGS]',
  '[CALL_ID]',
];

/** A text that is no call. */
class Malformed extends Error {}

function malformed(): never {
  throw new Malformed();
}

/** Suspends until there is one more character. */
type Reading<T = void> = Generator<void, T, string>;

/** The text, character by character (UTF-16 code units). */
class Input {
  /** The character to be read; '' at the end of the text. */
  char = '';
  /** Whitespace before `read`, which is text unless `read` begins a call. */
  space = '';
  /** What was read and is not known to be text or a call. */
  read = '';

  /** Forgets what was read. */
  drop(): void {
    this.space = '';
    this.read = '';
  }

  take(): void {
    this.read += this.char;
    this.char = '';
  }

  /** Waits for the next character. */
  *wait(): Reading {
    this.char = yield;
  }

  *advance(): Reading {
    this.take();
    yield* this.wait();
  }
}

/** Receives the calls as they are read. */
interface Sink {
  /** Whether there is such a function. */
  has(name: string): boolean;
  /** Throws Malformed if there is no such function. */
  begin(name: string, id?: string): void;
  /** More of the arguments. */
  add(text: string): void;
  end(): void;
}

/**
 * Takes calls out of a generated text while it is generated. Only calls of the functions `names`
 * count. What looks like a call and is none stays text.
 */
export class ToolCallParser {
  /** The calls that are whole. */
  readonly calls: ToolCall[] = [];
  readonly #format: ToolCallFormat;
  readonly #names: ReadonlySet<string>;
  readonly #input = new Input();
  readonly #reading: Reading;
  #current: ToolCall | undefined;
  #nextIndex = 0;
  #text = '';
  /** Whether there was text since the last call. */
  #hasText = false;
  #deltas: ToolCallDelta[] = [];

  constructor(format: ToolCallFormat, names: Iterable<string>) {
    this.#format = format;
    this.#names = new Set(names);
    this.#reading = this.#read();
    this.#reading.next();
  }

  /** Accepts more text. Withholds what may be part of a call. */
  push(text: string): ParsedText {
    for (let i = 0; i < text.length; i++) this.#reading.next(text[i] as string);
    return this.#take();
  }

  /** Accepts the end of the text. */
  flush(): ParsedText {
    this.#reading.next('');
    return this.#take();
  }

  #take(): ParsedText {
    const parsed = { text: this.#text, toolCalls: this.#deltas };
    this.#text = '';
    this.#deltas = [];
    return parsed;
  }

  *#read(): Reading {
    const input = this.#input;
    let isStart = true;
    yield* input.advance();
    while (input.char !== '') {
      const begin: string | undefined = yield* this.#readText(isStart);
      if (begin !== undefined) isStart = yield* this.#readCalls(begin);
    }
    // Nor is whitespace after calls part of the text.
    const rest = input.space + input.read;
    if (rest.trim() !== '' || this.calls.length === 0) this.#text += rest;
    input.drop();
  }

  /** Reads text up to what begins a call, and returns that. Undefined at the end of all text. */
  *#readText(isStart: boolean): Reading<string | undefined> {
    const input = this.#input;
    this.#hasText = false;
    const { begins, beginsAtStart } = this.#format;
    let candidates = isStart ? [...begins, ...beginsAtStart] : begins;
    while (input.char !== '') {
      input.take();
      const begin = this.#takeText(candidates);
      yield* input.wait();
      if (begin !== undefined) return begin;
      if (this.#hasText) candidates = begins;
    }
    return undefined;
  }

  /** Takes what is no start of `begins` as text. If the rest is one of `begins`, returns it. */
  #takeText(begins: readonly string[]): string | undefined {
    const input = this.#input;
    while (input.read !== '') {
      // Whitespace before a call is not part of the text.
      const rest = input.read.trimStart();
      input.space += input.read.slice(0, input.read.length - rest.length);
      input.read = rest;
      if (begins.includes(rest)) return rest;
      if (begins.some((begin) => begin.startsWith(rest))) return undefined;
      this.#text += input.space + rest.slice(0, 1);
      this.#hasText = true;
      input.space = '';
      input.read = rest.slice(1);
    }
    return undefined;
  }

  /**
   * Reads calls. Returns whether there was at least one. What is no call is left to be read as text.
   */
  *#readCalls(begin: string): Reading<boolean> {
    const numCalls = this.calls.length;
    try {
      yield* this.#format.read(this.#input, begin, this.#sink);
      this.#input.drop();
    } catch (error) {
      if (!(error instanceof Malformed)) throw error;
      this.#current = undefined;
    }
    return this.calls.length > numCalls;
  }

  readonly #sink: Sink = {
    has: (name) => this.#names.has(name),
    begin: (name, id = this.#format.newId()) => {
      if (!this.#names.has(name)) malformed();
      const index = this.#nextIndex++;
      this.#current = { id, type: 'function', function: { name, arguments: '' } };
      this.#deltas.push({ index, id, type: 'function', function: { name, arguments: '' } });
    },
    add: (text) => {
      (this.#current as ToolCall).function.arguments += text;
      const last = this.#deltas.at(-1);
      if (last?.index === this.#nextIndex - 1) {
        last.function.arguments += text;
      } else {
        this.#deltas.push({ index: this.#nextIndex - 1, function: { arguments: text } });
      }
    },
    end: () => {
      this.calls.push(this.#current as ToolCall);
      this.#current = undefined;
      this.#input.drop();
    },
  };
}

/**
 * Moves over `text` if it is next, after whitespace. At the end of all text nothing is next, and the
 * start of `text` counts as `text`: maxTokens can end a generation within it.
 */
function* skip(input: Input, text: string): Reading<boolean> {
  yield* skipSpace(input);
  if (input.char !== text[0]) return false;
  for (const char of text) {
    if (input.char === '') break;
    yield* expect(input, char);
  }
  return true;
}

function* skipSpace(input: Input): Reading {
  while (/^\s$/.test(input.char)) yield* input.advance();
}

function* expect(input: Input, text: string): Reading {
  for (const char of text) {
    if (input.char !== char) malformed();
    yield* input.advance();
  }
}

/** Reads up to `end` and moves over it. The end of all text counts as `end`. */
function* readUntil(input: Input, end: string): Reading<string> {
  let text = '';
  while (input.char !== '') {
    text += input.char;
    yield* input.advance();
    if (text.endsWith(end)) return text.slice(0, -end.length);
  }
  return text;
}

/** Reads one call or a JSON array of calls. `begun` is its first character if that was read. */
function* readList(input: Input, sink: Sink, begun = ''): Reading {
  if (begun === '') yield* skipSpace(input);
  if (begun !== '[' && input.char !== '[') {
    yield* readObject(input, sink, begun);
    return;
  }
  if (begun === '') yield* input.advance();
  do {
    yield* readObject(input, sink);
  } while (yield* skip(input, ','));
  if (!(yield* skip(input, ']'))) malformed();
}

/** Reads `name[ARGS]{...}`, with `[CALL_ID]id` before `[ARGS]` in some versions. */
function* readNamed(input: Input, sink: Sink): Reading {
  let head = '';
  while (input.char !== '{') {
    if (input.char === '' || head.length > MAX_HEAD) malformed();
    head += input.char;
    yield* input.advance();
  }
  const [, name, id] = /^([^[]+?)(?:\[CALL_ID\](\w+))?(?:\[ARGS\])?\s*$/.exec(head) ?? malformed();
  sink.begin(name as string, id);
  yield* readArguments(input, sink);
  sink.end();
}

const MAX_HEAD = 256;

/** Reads an object of arguments and passes it on as it comes. */
function* readArguments(input: Input, sink: Sink): Reading {
  const text = yield* readValue(input, (char) => sink.add(char));
  if (!isObject(text)) malformed();
}

/** Reads `{"name": ..., "arguments": {...}}`. The arguments may also be called `parameters`. */
function* readObject(input: Input, sink: Sink, begun = ''): Reading {
  if (begun === '') {
    yield* skipSpace(input);
    yield* expect(input, '{');
  }
  let name: string | undefined;
  let id: string | undefined;
  /** The arguments; null if they were passed on. */
  let args: string | null = '{}';
  do {
    yield* skipSpace(input);
    const key = parse(yield* readValue(input));
    if (!(yield* skip(input, ':'))) malformed();
    yield* skipSpace(input);
    if (key === 'arguments' || key === 'parameters') {
      // Streamed if the name is known.
      if (name !== undefined && input.char === '{' && args !== null) {
        sink.begin(name, id);
        args = null;
        yield* readArguments(input, sink);
      } else if (args === '{}') {
        args = yield* readValue(input);
      } else {
        malformed();
      }
      continue;
    }
    const value = parse(yield* readValue(input));
    if (key === 'name' && typeof value === 'string') name = value;
    if (key === 'id' && typeof value === 'string') id = value;
  } while (yield* skip(input, ','));
  if (name === undefined || !(yield* skip(input, '}'))) malformed();
  if (args !== null) {
    // Some models write the arguments as a string that contains JSON.
    const inner = args.startsWith('"') ? parse(args) : args;
    if (typeof inner !== 'string' || !isObject(inner)) malformed();
    sink.begin(name as string, id);
    sink.add(inner as string);
  }
  sink.end();
}

/**
 * Reads a JSON value and returns its text. Finds only where it ends: `parse` says whether it is
 * valid. `onChar` receives each character.
 */
function* readValue(input: Input, onChar = (_: string) => {}): Reading<string> {
  let text = '';
  let depth = 0;
  let inString = false;
  let isEscaped = false;
  for (;;) {
    const { char } = input;
    if (char === '') malformed();
    const isOver = depth === 0 && !inString && /[,:\]}\s]/.test(char);
    if (isOver) return text;
    text += char;
    onChar(char);
    if (inString) {
      if (char === '"' && !isEscaped) inString = false;
      isEscaped = char === '\\' && !isEscaped;
    } else if (char === '"') inString = true;
    else if (char === '{' || char === '[') depth++;
    else if (char === '}' || char === ']') depth--;
    yield* input.advance();
    // Objects, arrays and strings end by themselves.
    if (depth === 0 && !inString && /[}\]"]/.test(char)) return text;
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return malformed();
  }
}

function isObject(text: string): boolean {
  const value = parse(text);
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
