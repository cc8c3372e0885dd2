import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { isAborted, onAbort, throwIfAborted } from '../abort';
import { checkThreadSpace } from '../address_space';
import { aborted, DiffqkvError, invalidArgument } from '../errors';
import { packageRoot } from '../paths';
import type { TokenConstraint } from '../token_constraint';
import type { GrammarSource } from './format';
import type { GrammarAnswer, GrammarRequest, GrammarState, Vocabulary } from './thread';

const script = join(packageRoot, 'dist', 'lib', 'grammar', 'thread.js');

/** Milliseconds. */
interface Limits {
  /** Until the thread has loaded the library and the vocabulary: 2 s for 128,000 tokens. */
  start: number;
  /** The limit of a request. */
  request: number;
  /** The limit of a request that nobody waits for. Not 0, because a new thread loads all again. */
  abandoned: number;
  /** The thread ends if no text is being generated for this long. */
  idle: number;
}

/** A grammar that restricts the tokens of a generation. */
export interface Constraint extends TokenConstraint {
  readonly allowed: Uint32Array;
  /** Whether the text is complete: nothing but the end may follow. */
  readonly isFinished: boolean;
  /**
   * Rejects like {@link GrammarCompiler.compile}, but resolves when the signal is aborted. Then
   * `allowed` is out of date.
   */
  accept(token: number): Promise<void>;
  dispose(): void;
}

/** What of a model a grammar must know besides its tokens' bytes. */
export interface ConstraintOptions {
  /** Number of logits. */
  vocabSize: number;
  /** The tokens that may be drawn where a text may end. */
  endTokens: readonly number[];
  signal?: AbortSignal;
}

interface Pending {
  matcher: GrammarMatcher;
  request: Exclude<GrammarRequest, { kind: 'close' }>;
  resolve(state: GrammarState): void;
  reject(error: unknown): void;
  /** When its time is over, by `performance.now()`. Set while the thread runs it. */
  deadline?: number;
}

/**
 * Compiles and matches grammars of one vocabulary in a thread, which the first grammar starts. A
 * hostile grammar can take long or break the library. Then the thread is replaced, only that request
 * fails, and the other texts are repeated in the new thread. The process does not wait for requests
 * whose matchers were removed.
 */
export class GrammarCompiler {
  readonly #vocabulary: Vocabulary;
  readonly #limits: Limits;
  #worker: Worker | undefined;
  /** Whether the thread has loaded the library. */
  #isStarted = false;
  #isClosed = false;
  readonly #matchers = new Set<GrammarMatcher>();
  /** The thread runs the first one. */
  readonly #pending = new Map<number, Pending>();
  #timer: NodeJS.Timeout | undefined;
  #nextId = 1;

  constructor(
    vocabulary: Vocabulary,
    limits: Limits = { start: 60_000, request: 10_000, abandoned: 1_000, idle: 60_000 },
  ) {
    this.#vocabulary = vocabulary;
    this.#limits = limits;
  }

  /**
   * Compiles a grammar. Rejects with ERR_INVALID_ARGUMENT if the grammar is malformed, not
   * supported, too large or takes too long, ERR_UNSUPPORTED_MODEL if the bytes of a token depend on
   * other tokens, ERR_OUT_OF_MEMORY, ERR_DISPOSED, ABORT_ERR. The result must be disposed of.
   */
  async compile(source: GrammarSource, options: ConstraintOptions): Promise<Constraint> {
    const { signal } = options;
    throwIfAborted(signal);
    const matcher = new GrammarMatcher(this, this.#nextId++, source, options);
    this.#matchers.add(matcher);
    try {
      await untilAborted(signal, matcher.open());
      return matcher;
    } catch (error) {
      matcher.dispose();
      throw error;
    }
  }

  /** The state of a matcher after its tokens, of which `token` is the last. */
  request(matcher: GrammarMatcher, token?: number): Promise<GrammarState> {
    return new Promise((resolve, reject) => {
      if (this.#isClosed) throw disposed();
      const id = this.#nextId++;
      const request: Pending['request'] =
        token !== undefined && matcher.isOpen
          ? { kind: 'accept', id, matcher: matcher.number, token }
          : openRequest(matcher, id);
      this.#pending.set(id, { matcher, request, resolve, reject });
      try {
        this.#send(request);
      } catch (error) {
        this.#pending.delete(id);
        reject(error);
      }
      matcher.isOpen = true;
      this.#wait();
    });
  }

  /** Frees a matcher. Drops its request, unless the thread runs it. */
  remove(matcher: GrammarMatcher): void {
    if (!this.#matchers.delete(matcher)) return;
    if (matcher.isOpen) this.#worker?.postMessage({ kind: 'close', matcher: matcher.number });
    this.#wait();
  }

  /** Ends the thread. Requests reject with ERR_DISPOSED, also later ones. */
  close(): void {
    this.#isClosed = true;
    this.#fail(disposed());
  }

  #send(request: GrammarRequest): void {
    this.#worker ??= this.#start();
    this.#worker.postMessage(request);
  }

  #start(): Worker {
    checkThreadSpace('grammars');
    this.#isStarted = false;
    const { NODE_OPTIONS: _, ...env } = process.env;
    const worker = new Worker(script, { workerData: this.#vocabulary, execArgv: [], env });
    worker.on('message', (answer: GrammarAnswer) => this.#answer(answer));
    worker.on('error', ({ message }) => this.#replace(message));
    worker.on('exit', () => this.#replace('its thread ended'));
    return worker;
  }

  #answer(answer: GrammarAnswer): void {
    if ('isReady' in answer) {
      this.#isStarted = true;
      for (const pending of this.#pending.values()) pending.deadline = undefined;
      this.#wait();
      return;
    }
    if ('error' in answer && answer.error.scope === 'library') {
      this.#fail(new DiffqkvError(answer.error.code, answer.error.message));
      return;
    }
    if ('error' in answer && answer.error.scope === 'thread') {
      this.#replace(answer.error.message);
      return;
    }
    const pending = this.#pending.get(answer.id);
    this.#pending.delete(answer.id);
    this.#wait();
    if ('state' in answer) pending?.resolve(answer.state);
    else if ('isDropped' in answer) pending?.reject(aborted('during the generation'));
    else pending?.reject(invalidArgument(`responseFormat: ${answer.error.message}`));
  }

  /** Limits the time of the request that the thread runs, or the time without requests. */
  #wait(): void {
    clearTimeout(this.#timer);
    const [running] = this.#pending.values();
    if (running === undefined) {
      this.#worker?.unref();
      if (this.#matchers.size > 0) return;
      this.#timer = setTimeout(() => this.#end(), this.#limits.idle);
      this.#timer.unref();
      return;
    }
    const { start, request, abandoned } = this.#limits;
    const now = performance.now();
    const limit = this.#isStarted ? request : start;
    running.deadline ??= now + limit;
    if (this.#isStarted && !this.#matchers.has(running.matcher)) {
      running.deadline = Math.min(running.deadline, now + abandoned);
    }
    const replace = () => this.#replace(`it takes more than ${limit} ms`);
    this.#timer = setTimeout(replace, Math.max(0, running.deadline - now));
    const isAwaited = [...this.#pending.values()].some(({ matcher }) =>
      this.#matchers.has(matcher),
    );
    if (isAwaited) {
      this.#worker?.ref();
    } else {
      this.#worker?.unref();
      this.#timer.unref();
    }
  }

  /** Rejects the request that the thread runs, and gives the other ones to a new thread. */
  #replace(reason: string): void {
    const wasStarting = !this.#isStarted;
    this.#end();
    const [oldest] = this.#pending.keys();
    if (oldest !== undefined) {
      const { reject } = this.#pending.get(oldest) as Pending;
      this.#pending.delete(oldest);
      reject(
        wasStarting
          ? new DiffqkvError('ERR_INTERNAL', `the grammar library does not start: ${reason}`)
          : invalidArgument(
              `responseFormat is too complex for the grammar library (${reason}): simplify it`,
            ),
      );
    }
    try {
      for (const [id, pending] of this.#pending) {
        if (!this.#matchers.has(pending.matcher)) {
          this.#pending.delete(id);
          pending.reject(aborted('during the generation'));
          continue;
        }
        pending.deadline = undefined;
        pending.request = openRequest(pending.matcher, id);
        this.#send(pending.request);
        pending.matcher.isOpen = true;
      }
    } catch (error) {
      this.#fail(error);
    }
    this.#wait();
  }

  #fail(error: unknown): void {
    this.#end();
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { reject } of pending) reject(error);
  }

  #end(): void {
    clearTimeout(this.#timer);
    for (const matcher of this.#matchers) matcher.isOpen = false;
    const worker = this.#worker;
    this.#worker = undefined;
    worker?.removeAllListeners();
    worker?.on('error', () => {}); // of a thread that is not used any more
    void worker?.terminate();
  }
}

function disposed(): DiffqkvError {
  return new DiffqkvError('ERR_DISPOSED', 'the model was disposed of');
}

/** Like `promise`, but rejects with ABORT_ERR when the signal is aborted. */
async function untilAborted<T>(signal: AbortSignal | undefined, promise: Promise<T>): Promise<T> {
  let stopListening = () => {};
  const wasAborted = new Promise<never>((_, reject) => {
    stopListening = onAbort(signal, () => reject(aborted('during the generation')));
  });
  try {
    return await Promise.race([promise, wasAborted]);
  } finally {
    stopListening();
  }
}

function openRequest({ number, source, tokens }: GrammarMatcher, id: number): Pending['request'] {
  return { kind: 'open', id, matcher: number, source, tokens: [...tokens] };
}

class GrammarMatcher implements Constraint {
  /** The accepted tokens. */
  readonly tokens: number[] = [];
  /** Whether the thread has this matcher. */
  isOpen = false;
  allowed = new Uint32Array();
  isFinished = false;
  readonly #compiler: GrammarCompiler;
  readonly number: number;
  readonly source: GrammarSource;
  readonly #options: ConstraintOptions;

  constructor(
    compiler: GrammarCompiler,
    number: number,
    source: GrammarSource,
    options: ConstraintOptions,
  ) {
    this.#compiler = compiler;
    this.number = number;
    this.source = source;
    this.#options = options;
  }

  async open(): Promise<void> {
    this.#update(await this.#compiler.request(this));
  }

  async accept(token: number): Promise<void> {
    const { endTokens, signal } = this.#options;
    if (endTokens.includes(token)) {
      this.isFinished = true;
      return;
    }
    if (isAborted(signal)) return;
    this.tokens.push(token);
    try {
      this.#update(await untilAborted(signal, this.#compiler.request(this, token)));
    } catch (error) {
      if (!isAborted(signal)) throw error;
    }
  }

  dispose(): void {
    this.#compiler.remove(this);
  }

  #update({ allowed, mayEnd, isFinished }: GrammarState): void {
    const { vocabSize, endTokens } = this.#options;
    const words = new Uint32Array(Math.ceil(vocabSize / 32));
    words.set(allowed.subarray(0, words.length));
    // Tokens of the tokenizer that the model lacks.
    const rest = vocabSize % 32;
    if (rest > 0) words[words.length - 1] = (words.at(-1) as number) & (2 ** rest - 1);
    // Also if the grammar allows the text of an end token, drawing it would end the text.
    for (const token of endTokens) {
      if (token >= vocabSize) continue;
      const word = Math.floor(token / 32);
      const others = (words[word] as number) & ~(1 << (token % 32));
      words[word] = mayEnd ? others | (1 << (token % 32)) : others;
    }
    if (!isFinished && words.every((word) => word === 0)) {
      throw invalidArgument('responseFormat: no token of the model continues or ends the text');
    }
    this.allowed = words;
    this.isFinished = isFinished;
  }
}
