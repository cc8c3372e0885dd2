// The Rust library `tokenizers` runs in a process of its own, one for each tokenizer. A panic in the
// library aborts its process, and the tokenizer.json of a checkpoint can cause one: a pattern that
// backtracks too much, a damaged table. The library parses tokenizer.json in the calling thread,
// which takes seconds for a large vocabulary. So neither can happen in the process of the caller.

import { type ChildProcess, fork } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { addressSpaceLeft } from './address_space';
import { deferred } from './deferred';
import { DiffqkvError, invalidCheckpoint, unsupportedModel } from './errors';
import { packageRoot } from './paths';
import type { ChildAnswer, ChildSettings, EncodeRequest, Loaded } from './tokenizer_child';

/** The files of a tokenizer. */
export interface TokenizerSource {
  /** Path of tokenizer.json, for messages. */
  file: string;
  /** Path of tokenizer_config.json, for messages. */
  configFile: string;
  tokenizer: Uint8Array;
  /** Empty without tokenizer_config.json. */
  config: Uint8Array;
  /** Empty without chat_template.jinja. */
  template: Uint8Array;
}

export type EncodeCall = Omit<EncodeRequest, 'id' | 'limitMs'>;

interface Pending {
  call: EncodeCall;
  /** The tokens that have arrived. */
  parts: Uint32Array[];
  resolve(tokens: Uint32Array): void;
  reject(error: Error): void;
  /** The process ended while it ran this call and others, so it runs by itself now. */
  solo: boolean;
}

interface Child {
  process: ChildProcess;
  loaded: Promise<Loaded>;
  isLoaded: boolean;
  running: Map<number, Pending>;
}

const MEMORY_LIMIT = 2 ** 30; // plus MEMORY_PER_BYTE for each byte of the files
const MEMORY_PER_BYTE = 40;
const LOAD_LIMIT_MS = 20_000; // plus 2 s for each MB of the files
const ENCODE_LIMIT_MS = 10_000; // plus 0.1 ms for each character of the text
const MAX_STDERR = 10_000;

const script = join(packageRoot, 'dist', 'lib', 'tokenizer_child.js');

/**
 * Runs the tokenizer of `source` in another process, which is started by the first call and, if it
 * has ended, by the next one.
 */
export class TokenizerProcess {
  readonly #source: TokenizerSource;
  #child: Child | undefined;
  readonly #waiting: Pending[] = [];
  #nextId = 0;
  #isClosed = false;

  constructor(source: TokenizerSource) {
    this.#source = source;
  }

  /**
   * Starts the process. Rejects with ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL if it cannot
   * read the files, ERR_DEVICE_UNAVAILABLE if the library does not work here.
   */
  async load(): Promise<Loaded> {
    const child = this.#start();
    try {
      return await child.loaded;
    } catch (error) {
      child.process.kill('SIGKILL');
      if (this.#child === child) this.#child = undefined;
      throw error;
    }
  }

  /** Rejects with ERR_INVALID_CHECKPOINT if the tokenizer fails or exceeds a limit. */
  encode(call: EncodeCall): Promise<Uint32Array> {
    return new Promise((resolve, reject) => {
      this.#waiting.push({ call, parts: [], resolve, reject, solo: false });
      this.#next();
    });
  }

  /** Ends the process. Calls that are not done reject with ERR_DISPOSED. */
  close(): void {
    this.#isClosed = true;
    if (this.#child === undefined) return;
    const { process, isLoaded, running } = this.#child;
    // An idle process ends when it is disconnected. A busy one may not notice.
    if (isLoaded && running.size === 0 && process.connected) process.disconnect();
    else process.kill('SIGKILL');
  }

  /** Sends the calls that may run now. */
  #next(): void {
    while (this.#waiting.length > 0) {
      const first = this.#waiting[0] as Pending;
      const running = [...(this.#child?.running.values() ?? [])];
      if (running.some(({ solo }) => solo) || (first.solo && running.length > 0)) return;
      this.#waiting.shift();
      let child: Child;
      try {
        child = this.#child ?? this.#start();
      } catch (error) {
        first.reject(error as Error);
        continue;
      }
      const id = this.#nextId++;
      child.running.set(id, first);
      this.#send(child, id, first).catch((error) => {
        // If the process has ended, its exit settles the call.
        if (child.running.delete(id)) first.reject(error);
      });
    }
  }

  async #send(child: Child, id: number, { call }: Pending): Promise<void> {
    await child.loaded;
    if (!child.running.has(id)) return;
    const limitMs = ENCODE_LIMIT_MS + call.text.length / 10;
    const request: EncodeRequest = { ...call, id, limitMs };
    // An error means that the process has ended, and its exit settles the call.
    child.process.send(request, () => {});
  }

  #start(): Child {
    const { tokenizer, config, template } = this.#source;
    const bytes = tokenizer.length + config.length;
    const settings: ChildSettings = {
      files: {
        tokenizer: tokenizer.length,
        config: config.length,
        template: template.length,
      },
      loadLimitMs: LOAD_LIMIT_MS + bytes / 500,
      memoryLimit: MEMORY_LIMIT + bytes * MEMORY_PER_BYTE,
    };
    if (!existsSync(script)) {
      throw new DiffqkvError(
        'ERR_DEVICE_UNAVAILABLE',
        `${script} is missing: keep the package diffqkv external to a bundle ` +
          '(in a clone: npm run build)',
      );
    }
    const childProcess = fork(script, [JSON.stringify(settings)], {
      ...{
        env: { ...process.env, ELECTRON_RUN_AS_NODE: '1', UV_THREADPOOL_SIZE: '16' },
        execArgv: [],
        serialization: 'advanced',
      },
      stdio: ['pipe', 'ignore', 'pipe', 'ipc'],
    });
    let stderr = '';
    const { promise, resolve, reject } = deferred<Loaded>();
    promise.catch(() => {}); // each call that waits for it reports the error
    const child: Child = {
      process: childProcess,
      loaded: promise,
      isLoaded: false,
      running: new Map(),
    };
    childProcess.stderr?.setEncoding('utf8').on('data', (text: string) => {
      if (stderr.length < MAX_STDERR) stderr += text;
    });
    childProcess.on('message', (answer: ChildAnswer) => {
      if ('loaded' in answer) {
        child.isLoaded = true;
        resolve(answer.loaded);
      } else if ('problem' in answer) {
        reject(this.#problem(answer.problem.kind, answer.problem.message));
      } else {
        this.#receive(child, answer);
      }
    });
    childProcess.on('error', (error) => {
      const { code, message } = error as NodeJS.ErrnoException;
      reject(
        new DiffqkvError(
          code === 'ENOMEM' || code === 'EAGAIN' ? 'ERR_OUT_OF_MEMORY' : 'ERR_DEVICE_UNAVAILABLE',
          `cannot start a process for the tokenizer: ${message}`,
        ),
      );
      if (childProcess.pid === undefined && this.#child === child) this.#child = undefined;
    });
    // 'close' comes after the last of stderr. A process that did not start has only 'error'.
    childProcess.on('close', () => {
      if (this.#child === child) this.#child = undefined;
      const error = this.#failure(stderr);
      if (!child.isLoaded) reject(error);
      this.#ended(child, error);
    });
    childProcess.stdin?.on('error', () => {}); // the exit says why
    childProcess.stdin?.write(tokenizer);
    childProcess.stdin?.write(config);
    childProcess.stdin?.end(template);
    this.#child = child;
    return child;
  }

  /** The process ended. A call that was not alone in it is run again by itself. */
  #ended(child: Child, error: DiffqkvError): void {
    const calls = [...child.running.values()];
    child.running.clear();
    if (this.#isClosed) {
      for (const { reject } of [...calls, ...this.#waiting.splice(0)]) {
        reject(new DiffqkvError('ERR_DISPOSED', 'the tokenizer was disposed of while it encoded'));
      }
      return;
    }
    for (const call of calls) {
      if (calls.length > 1) this.#waiting.push({ ...call, parts: [], solo: true });
      else call.reject(error);
    }
    this.#next();
  }

  #receive(child: Child, answer: Exclude<ChildAnswer, { loaded: unknown } | { problem: unknown }>) {
    // A call runs until its last answer or the end of its process.
    const pending = child.running.get(answer.id) as Pending;
    if ('tokens' in answer) {
      pending.parts.push(answer.tokens);
      if (!answer.isLast) return;
    }
    child.running.delete(answer.id);
    if ('tokens' in answer) pending.resolve(concatenate(pending.parts));
    else pending.reject(invalidCheckpoint(this.#source.file, `cannot encode: ${answer.error}`));
    this.#next();
  }

  /** Why the process ended, from what it wrote last. */
  #failure(stderr: string): DiffqkvError {
    const { file } = this.#source;
    const isOut = /Fatal process (OOM|out of memory)|Cannot allocate memory|ENOMEM/.test(stderr);
    // Without memory for a thread, libuv aborts and writes nothing.
    if (isOut || (stderr === '' && Number.isFinite(addressSpaceLeft()))) {
      const message = `${file}: there is no memory for the process of the tokenizer`;
      return new DiffqkvError('ERR_OUT_OF_MEMORY', message);
    }
    const limit = /\nlimit: (time|memory)\n/.exec(stderr)?.[1];
    if (limit === 'time') {
      return invalidCheckpoint(file, 'the tokenizer was stopped after the time limit');
    }
    if (limit === 'memory') {
      const reason = 'the tokenizer was stopped because it takes too much memory';
      return invalidCheckpoint(file, reason);
    }
    const lines = stderr.split('\n');
    const panic = lines.findIndex((line) => line.includes('panicked at'));
    const message = lines.find((line) => /Error|error|failed|FATAL/.test(line));
    const cause = (panic >= 0 ? lines[panic + 1] : message) ?? 'its process ended';
    return invalidCheckpoint(file, `the tokenizer failed: ${cause}`);
  }

  #problem(kind: string, message: string): DiffqkvError {
    const { file, configFile } = this.#source;
    if (kind === 'config') return invalidCheckpoint(configFile, message);
    if (kind === 'unsupported') return unsupportedModel(file, message);
    if (kind === 'malformed') return invalidCheckpoint(file, `malformed: ${message}`);
    return new DiffqkvError(
      'ERR_DEVICE_UNAVAILABLE',
      `the package tokenizers does not work on ${process.platform}-${process.arch} ` +
        `(${message.split('\n')[0]}): pass prompts as tokens, to a model without tokenizer.json`,
    );
  }
}

function concatenate(parts: Uint32Array[]): Uint32Array {
  const whole = new Uint32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let end = 0;
  for (const part of parts) {
    whole.set(part, end);
    end += part.length;
  }
  return whole;
}
