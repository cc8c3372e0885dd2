import { join } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import {
  MessageChannel,
  type MessagePort,
  receiveMessageOnPort,
  Worker,
} from 'node:worker_threads';
import { checkThreadSpace } from './address_space';
import { DiffqkvError } from './errors';
import { packageRoot } from './paths';
import type { Loaded } from './tokenizer_child';
import type { EncodeCall, TokenizerSource } from './tokenizer_process';
import type { ThreadAnswer, ThreadData, ThreadRequest } from './tokenizer_thread';

interface Pending {
  resolve(answer: ThreadAnswer): void;
  reject(error: Error): void;
}

const CODE_MB = 16;
const STEP = 2 ** 17; // tokens; takes about 1 ms

const script = join(packageRoot, 'dist', 'lib', 'tokenizer_thread.js');

/** The thread that talks to the processes of all tokenizers of this thread. */
class Thread {
  readonly #worker: Worker;
  readonly #awaited: MessagePort;
  readonly #answered = new Int32Array(new SharedArrayBuffer(4));
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;
  #numOpen = 0;
  #error: DiffqkvError | undefined;

  constructor() {
    checkThreadSpace('the tokenizers');
    const { port1, port2 } = new MessageChannel();
    this.#awaited = port1;
    port1.unref();
    const data: ThreadData = { awaited: port2, answered: this.#answered };
    const { NODE_OPTIONS: _, ...env } = process.env;
    this.#worker = new Worker(script, {
      ...{ workerData: data, transferList: [port2], execArgv: [], env },
      resourceLimits: { codeRangeSizeMb: CODE_MB }, // by default 512 MB of address space
    });
    this.#worker.unref();
    this.#worker.on('message', (answer: ThreadAnswer) => {
      const pending = this.#pending.get(answer.id);
      this.#pending.delete(answer.id);
      this.#rest();
      if ('error' in answer) pending?.reject(toError(answer.error));
      else pending?.resolve(answer);
    });
    const fail = (reason: string) => {
      if (thread === this) thread = undefined;
      this.#error ??= new DiffqkvError('ERR_INTERNAL', `the thread of the tokenizers ${reason}`);
      for (const { reject } of this.#pending.values()) reject(this.#error);
      this.#pending.clear();
    };
    this.#worker.on('error', ({ message }) => fail(`failed: ${message}`));
    this.#worker.on('exit', () => fail('ended'));
  }

  get hasFailed(): boolean {
    return this.#error !== undefined;
  }

  newId(): number {
    return this.#nextId++;
  }

  /** Returns the number of a tokenizer, which has no process yet. */
  open(source: TokenizerSource): number {
    const tokenizer = this.newId();
    this.#numOpen++;
    this.post({ kind: 'open', tokenizer, source });
    return tokenizer;
  }

  /** Ends the process of a tokenizer, and the thread with the last one. */
  close(tokenizer: number): void {
    this.#numOpen--;
    this.post({ kind: 'close', tokenizer });
    this.#rest();
  }

  #rest(): void {
    if (this.#pending.size > 0) return;
    this.#worker.unref();
    if (this.#numOpen > 0 || thread !== this) return;
    thread = undefined;
    this.post({ kind: 'end' });
  }

  post(request: ThreadRequest): void {
    this.#worker.postMessage(request);
  }

  /** Keeps this process running until the answer is here. */
  call(request: Extract<ThreadRequest, { id: number }>): Promise<ThreadAnswer> {
    return new Promise((resolve, reject) => {
      this.#pending.set(request.id, { resolve, reject });
      this.#worker.ref();
      this.post(request);
    });
  }

  /** Waits for the answer, and returns undefined after `limitMs`. */
  wait(request: Extract<ThreadRequest, { id: number }>, limitMs: number): ThreadAnswer | undefined {
    this.post(request);
    const deadline = performance.now() + limitMs;
    for (;;) {
      const last = Atomics.load(this.#answered, 0);
      for (;;) {
        // Answers to earlier calls, which were not waited for until the end, come first.
        const answer: ThreadAnswer | undefined = receiveMessageOnPort(this.#awaited)?.message;
        if (answer === undefined) break;
        if (answer.id === request.id) return answer;
      }
      const restMs = deadline - performance.now();
      if (restMs <= 0) return undefined;
      Atomics.wait(this.#answered, 0, last, restMs);
    }
  }
}

let thread: Thread | undefined;

function toError({ code, message }: { code: DiffqkvError['code']; message: string }): DiffqkvError {
  return new DiffqkvError(code, message);
}

/** The thread and the number of an open tokenizer. */
interface Connection {
  thread: Thread;
  tokenizer: number;
}

/** What a {@link TokenizerClient} and the registry below have in common. */
interface State {
  connection: Connection | undefined;
}

function disconnect(state: State): void {
  state.connection?.thread.close(state.connection.tokenizer);
  state.connection = undefined;
}

// A tokenizer that is not used any more ends its process.
const unused = new FinalizationRegistry(disconnect);

/** Encodes texts in another process: see lib/tokenizer_process.ts. */
export class TokenizerClient {
  readonly #source: TokenizerSource;
  readonly #state: State = { connection: undefined };
  #loaded: Loaded | undefined;

  constructor(source: TokenizerSource) {
    this.#source = source;
    unused.register(this, this.#state);
  }

  /**
   * Starts the process. Rejects with ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL if it cannot
   * read the files, ERR_DEVICE_UNAVAILABLE if the library does not work here.
   */
  async load(): Promise<void> {
    const { thread, tokenizer } = this.#connect();
    const answer = await thread.call({ kind: 'load', id: thread.newId(), tokenizer });
    this.#loaded = (answer as { loaded: Loaded }).loaded;
  }

  /** The answer of `load`. */
  get loaded(): Loaded {
    return this.#loaded as Loaded;
  }

  /** Rejects with ERR_INVALID_CHECKPOINT if the tokenizer fails or exceeds a limit. */
  async encode(call: EncodeCall): Promise<number[]> {
    const { thread, tokenizer } = this.#connect();
    const id = thread.newId();
    const request = { kind: 'encode', id, tokenizer, call, isAwaited: false } as const;
    const { tokens } = (await thread.call(request)) as { tokens: Uint32Array };
    return toArray(tokens);
  }

  /** Like `encode`, but waits for the tokens. Returns undefined after `limitMs`. */
  encodeNow(call: EncodeCall, limitMs: number): number[] | undefined {
    const { thread, tokenizer } = this.#connect();
    const id = thread.newId();
    const answer = thread.wait({ kind: 'encode', id, tokenizer, call, isAwaited: true }, limitMs);
    if (answer === undefined) return undefined;
    if ('error' in answer) throw toError(answer.error);
    return Array.from((answer as { tokens: Uint32Array }).tokens);
  }

  /** Ends the process. A later call starts it again. */
  close(): void {
    disconnect(this.#state);
  }

  #connect(): Connection {
    const { connection } = this.#state;
    if (connection !== undefined && !connection.thread.hasFailed) return connection;
    thread ??= new Thread();
    this.#state.connection = { thread, tokenizer: thread.open(this.#source) };
    return this.#state.connection;
  }
}

/** Converts in steps, so that millions of tokens do not hold the event loop. */
async function toArray(tokens: Uint32Array): Promise<number[]> {
  if (tokens.length <= STEP) return Array.from(tokens);
  const result = new Array<number>(tokens.length);
  for (let start = 0; start < tokens.length; start += STEP) {
    const end = Math.min(start + STEP, tokens.length);
    for (let i = start; i < end; i++) result[i] = tokens[i] as number;
    await setImmediate();
  }
  return result;
}
