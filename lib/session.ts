import { throwIfAborted, withCancel } from './abort';
import type { NativeBatchItem, NativeCancel, NativeSession, NativeSessionOptions } from './addon';
import { CallOrder } from './call_order';
import { callNative, checkInteger, checkNotNull, invalid } from './errors';
import { callOrder, native } from './internal';
import { checkSelectiveV, type SelectiveV } from './kernels';
import type { Model } from './model';
import { type OptionNames, readOptions } from './options';
import { checkReceiver } from './receiver';
import { saveSession } from './session_file';
import type { DType } from './tensor';

/** Options of {@link Model.createSession}. */
export interface SessionOptions {
  /**
   * Maximum number of tokens in the cache: an integer of at least 1. Memory is allocated as the
   * cache grows. Default: the model's `maxPositionEmbeddings`.
   */
  maxKvLen?: number;
  /**
   * Element type of the K cache: 'f32', 'f16', 'bf16', 'i8' or 'f8e4m3'. The last two are quantized
   * as tokens are appended, with one scale per token and head. Default: the model's dtype.
   */
  kType?: DType;
  /** The same for the V cache. K and V may have different types. Default: the model's dtype. */
  vType?: DType;
  /** Read only the V rows of the highest scores of each query, in prefill too. Default: all. */
  selectiveV?: SelectiveV;
}

/** The names of {@link SessionOptions}. */
export const SESSION_OPTIONS: OptionNames<SessionOptions> = {
  maxKvLen: true,
  kType: true,
  vType: true,
  selectiveV: true,
};

/**
 * One sequence of a model, with its KV cache. Created by {@link Model.createSession}. Calls and
 * generations run in the order in which they were made: a method that is called while a generation
 * uses the session runs after its end. Only `dispose` and the properties do not wait. Methods throw
 * or reject with ERR_DISPOSED after `dispose`.
 */
export class Session implements Disposable {
  /** The model of this sequence. */
  readonly model: Model;
  readonly #native: NativeSession;
  readonly #order = new CallOrder();

  private constructor(model: Model, session: NativeSession) {
    this.model = model;
    this.#native = session;
  }

  /** @internal */
  static create(model: Model, session: NativeSession): Session {
    return new Session(model, session);
  }

  /**
   * True only for an object that this class created. A Proxy of a session, or another object with
   * this prototype, has no native session.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Session {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** @internal */
  get [native](): NativeSession {
    return this.#native;
  }

  /** @internal */
  get [callOrder](): CallOrder {
    return this.#order;
  }

  /** Number of tokens in the cache now: it changes during a generation. */
  get kvLen(): number {
    return callNative(() => this.#native.kvLen);
  }

  /** Maximum number of tokens in the cache. */
  get maxKvLen(): number {
    return callNative(() => this.#native.maxKvLen);
  }

  /** Bytes of the cache's pages, for K and V separately. Pages shared with forks count in full. */
  get kvCacheBytes(): {
    /** Bytes of K pages. */
    k: number;
    /** Bytes of V pages. */
    v: number;
  } {
    return callNative(() => ({ k: this.#native.kCacheBytes, v: this.#native.vCacheBytes }));
  }

  /**
   * Appends tokens (at least one, each from 0 to vocabSize - 1) to the cache and resolves to the
   * logits of the last one, float32 [vocabSize]. Long prompts run in chunks. `signal` makes the
   * call reject with ABORT_ERR within one chunk. Also rejects with ERR_INVALID_ARGUMENT,
   * ERR_KV_CACHE_FULL, ERR_OUT_OF_MEMORY or ERR_DISPOSED. After any error the cache is unchanged.
   */
  async prefill(
    tokens: readonly number[] | Int32Array | Uint32Array,
    options: { signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    const { signal } = readOptions('options', options, { signal: true });
    const list = checkTokens(tokens, this.model.config.vocabSize);
    throwIfAborted(signal);
    return this.#order.call(
      () => withCancel(signal, (cancel) => this.#append(list, cancel)),
      signal,
    );
  }

  /**
   * Appends one token, from 0 to vocabSize - 1, and resolves to its logits, float32 [vocabSize].
   * Rejects like `prefill`.
   */
  async decode(token: number): Promise<Float32Array> {
    checkInteger('token', token, 0, this.model.config.vocabSize - 1);
    return this.#order.call(() => this.#append(Int32Array.of(token)));
  }

  // A batch of one item, in the queue of the device before this returns: later calls, such as a
  // truncate, come after it. The scheduler would defer it until its next step.
  async #append(tokens: Int32Array, cancel?: NativeCancel): Promise<Float32Array> {
    const logits = new Float32Array(this.model.config.vocabSize);
    const item: NativeBatchItem = { session: this.#native, tokens, chunks: 'all', logits };
    const [result] = await this.model[native].step({ items: [item], cancel });
    if (result?.error !== undefined) throw result.error;
    return logits;
  }

  /**
   * Keeps the first `kvLen` tokens of the cache and drops the rest. A model whose layers all have a
   * sliding window holds only the last tokens; after a truncate below them, the next `prefill` or
   * `decode` computes the tokens that it keeps again. Rejects with
   * ERR_INVALID_ARGUMENT unless `kvLen` is an integer from 0 to the current length.
   */
  async truncate(kvLen: number): Promise<void> {
    checkInteger('kvLen', kvLen, 0, 2 ** 31 - 1);
    return this.#order.call(() => this.#native.truncate({ kvLen }));
  }

  /**
   * Resolves to a new session with the same tokens in its cache. The two share their pages; a page
   * is copied when one of them writes to it. Rejects with ERR_DISPOSED.
   */
  async fork(): Promise<Session> {
    const fork = await this.#order.call(() => this.#native.fork());
    return new Session(this.model, fork);
  }

  /**
   * Writes the tokens and the cache to a file, from which `model.loadSession` makes a session that
   * continues with the same bits. The file is written under another name in its directory, synced and
   * renamed, so `file` has its old contents or the new ones; only its owner may read it. If `file` is
   * a symbolic link, its target is replaced. Later calls on the session do not wait for the file.
   * They do not change what is saved, but the first one that appends tokens may need one page more.
   * `signal` makes the call reject with ABORT_ERR within 1 MiB. Also rejects with ERR_SESSION_FILE if
   * the file cannot be written, for example on a full disk, or if `file` exists and is not a regular
   * file; ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY or ERR_DISPOSED. After any error `file` is as
   * before.
   */
  async save(file: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    const { signal } = readOptions('options', options, { signal: true });
    return saveSession(this, file, signal);
  }

  /**
   * Frees the cache after earlier calls are done. A generation that uses the session, and whatever
   * waits for that, ends with ERR_DISPOSED. A second call does nothing.
   */
  dispose(): void {
    this.#native.dispose();
  }

  /** Calls `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

checkReceiver(Session, 'a session');

/**
 * Copies tokens to the array type of the addon. Throws ERR_INVALID_ARGUMENT if the list, which is
 * called `name`, is empty or an element is not an integer from 0 to vocabSize - 1.
 */
export function checkTokens(
  tokens: readonly number[] | Int32Array | Uint32Array,
  vocabSize: number,
  name = 'tokens',
): Int32Array {
  const isList =
    Array.isArray(tokens) || (ArrayBuffer.isView(tokens) && !(tokens instanceof DataView));
  if (!isList) throw invalid(name, 'an array of token ids', tokens);
  if (tokens.length === 0) throw invalid(name, 'at least one token id', tokens);
  const list = new Int32Array(tokens.length);
  for (let i = 0; i < list.length; i++) {
    checkInteger(`${name}[${i}]`, tokens[i], 0, vocabSize - 1);
    list[i] = tokens[i] as number;
  }
  return list;
}

/** Checks session options and converts them for the addon, which checks the cache types. */
export function nativeSessionOptions(options: SessionOptions): NativeSessionOptions {
  const { maxKvLen, kType, vType, selectiveV } = readOptions('options', options, SESSION_OPTIONS);
  if (maxKvLen !== undefined) checkInteger('maxKvLen', maxKvLen, 1, 2 ** 31 - 1);
  checkNotNull('kType', 'an element type', kType);
  checkNotNull('vType', 'an element type', vType);
  return { maxKvLen, kType, vType, selectiveV: checkSelectiveV(selectiveV) };
}
