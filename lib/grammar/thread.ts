// The thread in which the grammars of a model are compiled and matched. lib/grammar/compiler.ts
// starts it, and ends it if a request takes too long.

import {
  type MessagePort,
  parentPort,
  receiveMessageOnPort,
  workerData,
} from 'node:worker_threads';
import { type DecoderConfig, tokenBytes } from '../decoder';
import { DiffqkvError, type ErrorCode } from '../errors';
import type { GrammarSource } from './format';
import { GrammarError, GrammarLibrary, type Matcher } from './library';

/** The strings of all tokens and how they become text. `workerData` of the thread. */
export interface Vocabulary {
  /** UTF-8 of all token strings. */
  text: Uint8Array;
  /** Start and end of token `id` in `text`, at 2 * id. An id without a token has start > end. */
  ranges: Uint32Array;
  /** Texts of the special tokens, which text never has. */
  specialTexts: ReadonlySet<string>;
  decoder: DecoderConfig | null;
}

/** `open` also accepts `tokens`. The client chooses the number of the matcher. */
export type GrammarRequest =
  | { kind: 'open'; id: number; matcher: number; source: GrammarSource; tokens: number[] }
  | { kind: 'accept'; id: number; matcher: number; token: number }
  | { kind: 'close'; matcher: number };

export interface GrammarState {
  /** Bit t % 32 of word t / 32: whether token t of the vocabulary may follow. */
  allowed: Uint32Array;
  /** Whether the text may end here. */
  mayEnd: boolean;
  /** Whether the text must end here. */
  isFinished: boolean;
}

export interface GrammarFailure {
  /** `grammar`: of this request only. `thread`: the thread cannot go on. `library`: no thread can. */
  scope: 'grammar' | 'thread' | 'library';
  code: ErrorCode;
  message: string;
}

/** `isReady`: the library is loaded. `isDropped`: the matcher was closed before the request ran. */
export type GrammarAnswer =
  | { isReady: true }
  | { id: number; isDropped: true }
  | { id: number; state: GrammarState }
  | { id: number; error: GrammarFailure };

// Compiled grammars are kept, because the requests of a server use the same ones.
const MAX_COMPILED = 16;

const port = parentPort as MessagePort;
const library = loadLibrary(workerData as Vocabulary);
const compiled = new Map<string, Matcher>();
const matchers = new Map<number, Matcher>();

async function loadLibrary(vocabulary: Vocabulary): Promise<GrammarLibrary> {
  const { text, ranges, specialTexts, decoder } = vocabulary;
  const strings = Buffer.from(text.buffer, text.byteOffset, text.byteLength);
  const toBytes = tokenBytes(decoder);
  const lengths = new Uint32Array(ranges.length / 2);
  const parts: Uint8Array[] = [];
  for (let token = 0; token < lengths.length; token++) {
    const [start, end] = ranges.subarray(2 * token, 2 * token + 2) as unknown as [number, number];
    const piece = strings.toString('utf8', start, Math.max(start, end));
    if (piece === '' || specialTexts.has(piece)) continue;
    const bytes = toBytes(piece);
    lengths[token] = bytes.length;
    parts.push(bytes);
  }
  return GrammarLibrary.load(lengths, Buffer.concat(parts));
}

/** A new matcher of a grammar. */
async function open(source: GrammarSource): Promise<Matcher> {
  const key = `${source.kind}:${source.text}`;
  let matcher = compiled.get(key);
  matcher ??= (await library).compile(source);
  compiled.delete(key); // moves it to the end
  compiled.set(key, matcher);
  const [oldest] = compiled.keys();
  if (compiled.size > MAX_COMPILED && oldest !== undefined) {
    compiled.get(oldest)?.free();
    compiled.delete(oldest);
  }
  return matcher.clone();
}

async function stateOf(matcher: Matcher): Promise<GrammarState> {
  const { endToken } = await library;
  const isFinished = matcher.isFinished;
  const allowed = matcher.allowed();
  const endWord = Math.floor(endToken / 32);
  const endBit = 1 << (endToken % 32);
  const mayEnd = ((allowed[endWord] as number) & endBit) !== 0;
  allowed[endWord] = (allowed[endWord] as number) & ~endBit;
  return { allowed, mayEnd, isFinished };
}

async function run(request: Exclude<GrammarRequest, { kind: 'close' }>): Promise<GrammarState> {
  if (request.kind === 'open') {
    const matcher = await open(request.source);
    matchers.set(request.matcher, matcher);
    for (const token of request.tokens) matcher.accept(token);
    return stateOf(matcher);
  }
  const matcher = matchers.get(request.matcher) as Matcher;
  matcher.accept(request.token);
  return stateOf(matcher);
}

async function answer(request: Exclude<GrammarRequest, { kind: 'close' }>): Promise<void> {
  const { id } = request;
  try {
    const state = await run(request);
    port.postMessage({ id, state } satisfies GrammarAnswer, [state.allowed.buffer as ArrayBuffer]);
  } catch (error) {
    port.postMessage({ id, error: await failure(error) } satisfies GrammarAnswer);
  }
}

async function failure(error: unknown): Promise<GrammarFailure> {
  const { message } = error as Error;
  const isLoaded = await library.then(
    () => true,
    () => false,
  );
  // WebAssembly reserves address space, and throws a RangeError if there is none.
  const otherwise = error instanceof RangeError ? 'ERR_OUT_OF_MEMORY' : 'ERR_INTERNAL';
  const code = error instanceof DiffqkvError ? error.code : otherwise;
  if (!isLoaded) return { scope: 'library', code, message };
  return { scope: error instanceof GrammarError ? 'grammar' : 'thread', code, message };
}

const queue: GrammarRequest[] = [];
/** Matchers whose `close` is in the queue. */
const closing = new Set<number>();

function enqueue(request: GrammarRequest): void {
  if (request.kind === 'close') closing.add(request.matcher);
  queue.push(request);
}

async function runQueue(): Promise<void> {
  for (;;) {
    // A `close` that has arrived meanwhile drops the requests before it.
    let received = receiveMessageOnPort(port);
    while (received !== undefined) {
      enqueue(received.message);
      received = receiveMessageOnPort(port);
    }
    const request = queue.shift();
    if (request === undefined) return;
    if (request.kind === 'close') {
      closing.delete(request.matcher);
      matchers.get(request.matcher)?.free();
      matchers.delete(request.matcher);
    } else if (closing.has(request.matcher)) {
      port.postMessage({ id: request.id, isDropped: true } satisfies GrammarAnswer);
    } else {
      await answer(request);
    }
  }
}

let last: Promise<void> = library.then(
  () => port.postMessage({ isReady: true } satisfies GrammarAnswer),
  () => {}, // each request rejects with the error
);
port.on('message', (request: GrammarRequest) => {
  enqueue(request);
  last = last.then(runQueue);
});
