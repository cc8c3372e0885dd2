// The thread that starts the processes of tokenizers and talks to them. The thread of the caller
// can wait for it, which `Tokenizer.encode` does. lib/tokenizer_client.ts starts it.

import { type MessagePort, parentPort, workerData } from 'node:worker_threads';
import { DiffqkvError, type ErrorCode } from './errors';
import type { Loaded } from './tokenizer_child';
import { type EncodeCall, TokenizerProcess, type TokenizerSource } from './tokenizer_process';

/** `workerData` of the thread. */
export interface ThreadData {
  /** Receives the answers that the caller waits for. */
  awaited: MessagePort;
  /** One element: the id of the last answer that was sent to `awaited`. */
  answered: Int32Array;
}

/** `tokenizer` is a number that the caller chooses. */
export type ThreadRequest =
  | { kind: 'open'; tokenizer: number; source: TokenizerSource }
  | { kind: 'load'; tokenizer: number; id: number }
  | { kind: 'encode'; tokenizer: number; id: number; call: EncodeCall; isAwaited: boolean }
  | { kind: 'close'; tokenizer: number }
  | { kind: 'end' };

export type ThreadAnswer =
  | { id: number; loaded: Loaded }
  | { id: number; tokens: Uint32Array }
  | { id: number; error: { code: ErrorCode; message: string } };

const { awaited, answered } = workerData as ThreadData;
const port = parentPort as MessagePort;
const processes = new Map<number, TokenizerProcess>();

function failure(id: number, error: unknown): ThreadAnswer {
  const { message } = error as Error;
  const code = error instanceof DiffqkvError ? error.code : 'ERR_INTERNAL';
  return { id, error: { code, message } };
}

const processOf = (tokenizer: number) => processes.get(tokenizer) as TokenizerProcess;

async function load({ id, tokenizer }: Extract<ThreadRequest, { kind: 'load' }>): Promise<void> {
  try {
    const { text, ranges, ...rest } = await processOf(tokenizer).load();
    // Copies, to be transferred: the buffers belong to a larger message.
    const loaded: Loaded = { ...rest, text: text.slice(), ranges: ranges.slice() };
    const buffers = [loaded.text.buffer, loaded.ranges.buffer] as ArrayBuffer[];
    port.postMessage({ id, loaded } satisfies ThreadAnswer, buffers);
  } catch (error) {
    port.postMessage(failure(id, error));
  }
}

async function encode(request: Extract<ThreadRequest, { kind: 'encode' }>): Promise<void> {
  const { id, tokenizer, call, isAwaited } = request;
  let answer: ThreadAnswer;
  const transferred: ArrayBuffer[] = [];
  try {
    const tokens = await processOf(tokenizer).encode(call);
    answer = { id, tokens };
    transferred.push(tokens.buffer as ArrayBuffer);
  } catch (error) {
    answer = failure(id, error);
  }
  if (!isAwaited) return port.postMessage(answer, transferred);
  awaited.postMessage(answer, transferred);
  Atomics.store(answered, 0, id);
  Atomics.notify(answered, 0);
}

port.on('message', (request: ThreadRequest) => {
  switch (request.kind) {
    case 'open':
      processes.set(request.tokenizer, new TokenizerProcess(request.source));
      break;
    case 'load':
      void load(request);
      break;
    case 'encode':
      void encode(request);
      break;
    case 'close':
      processOf(request.tokenizer).close();
      processes.delete(request.tokenizer);
      break;
    case 'end':
      // The thread ends when the processes have ended.
      awaited.close();
      port.close();
  }
});
