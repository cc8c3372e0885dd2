import { withCancel } from './abort';
import type { NativeSession, NativeSessionOptions } from './addon';
import { awaitNative, callNative, checkInteger, checkObject, invalid, refuseNull } from './errors';
import { checkSelectiveV, type SelectiveV } from './kernels';
import type { Model } from './model';
import type { DType } from './tensor';

/** How `model.createSession` sets up a sequence. */
export interface SessionOptions {
  /** The most tokens that the cache may hold; memory is taken as it fills. Default: the config's maxPositionEmbeddings. */
  maxKvLen?: number;
  /**
   * Element type of the K cache: 'f32', 'f16', 'bf16', or 'i8' or 'f8e4m3', quantised as tokens are appended, with one scale per
   * token and head. Default: the model's.
   */
  kType?: DType;
  /** The same of the V cache; any pair goes together. Default: the model's. */
  vType?: DType;
  /** Fetch only the V rows of the highest scores, for every query of this session. */
  selectiveV?: SelectiveV;
}

export let nativeSession: (session: Session) => NativeSession;
export let isSession: (value: unknown) => value is Session;
export let createSession: (model: Model, native: NativeSession) => Session;

/**
 * One sequence of a model: its KV cache. Made by {@link Model.createSession}. Calls on it run in the order in which they were
 * made. Use after `dispose` is ERR_DISPOSED.
 */
export class Session implements Disposable {
  /** The model that it is a sequence of. */
  readonly model: Model;
  readonly #native: NativeSession;

  static {
    nativeSession = (session) => session.#native;
    isSession = (value): value is Session =>
      typeof value === 'object' && value !== null && #native in value;
    createSession = (model, native) => new Session(model, native);
  }

  private constructor(model: Model, native: NativeSession) {
    this.model = model;
    this.#native = native;
  }

  /** Tokens in the cache, after the calls that are done. */
  get kvLen(): number {
    return callNative(() => this.#native.kvLen);
  }

  /** The most tokens that the cache may hold. */
  get maxKvLen(): number {
    return callNative(() => this.#native.maxKvLen);
  }

  /** Bytes of the pages that the cache holds now, K and V apart; pages shared with forks count in full. */
  get kvCacheBytes(): {
    /** Of K. */
    k: number;
    /** Of V. */
    v: number;
  } {
    return callNative(() => ({ k: this.#native.kCacheBytes, v: this.#native.vCacheBytes }));
  }

  /**
   * Appends tokens (at least one) to the cache and resolves to the logits of the last one, float32 [vocabSize]. Long
   * prompts run in chunks; `signal` ends the call within one, with ABORT_ERR. On any error the cache is as it was:
   * ERR_INVALID_ARGUMENT (a token outside the vocabulary), ERR_KV_CACHE_FULL, ERR_OUT_OF_MEMORY, ERR_DISPOSED.
   */
  async prefill(
    tokens: readonly number[] | Int32Array | Uint32Array,
    options: { signal?: AbortSignal } = {},
  ): Promise<Float32Array> {
    checkObject('options', options);
    const list = checkTokens(tokens, this.model.config.vocabSize);
    const logits = new Float32Array(this.model.config.vocabSize);
    await withCancel(options.signal, (cancel) => this.#native.forward(list, logits, cancel));
    return logits;
  }

  /** The same for one more token, from 0 to vocabSize - 1. */
  async decode(token: number): Promise<Float32Array> {
    const { vocabSize } = this.model.config;
    checkInteger('token', token, 0, vocabSize - 1);
    const logits = new Float32Array(vocabSize);
    await awaitNative(() => this.#native.forward(Int32Array.of(token), logits, undefined));
    return logits;
  }

  /** Keeps the first `kvLen` tokens of the cache and drops the rest; from 0 to the present length, else ERR_INVALID_ARGUMENT. */
  async truncate(kvLen: number): Promise<void> {
    checkInteger('kvLen', kvLen, 0, 2 ** 31 - 1);
    return awaitNative(() => this.#native.truncate(kvLen));
  }

  /** A second session that goes on from here. It shares the cache so far: only a page that one of them writes to is copied. ERR_DISPOSED. */
  async fork(): Promise<Session> {
    return new Session(this.model, await awaitNative(() => this.#native.fork()));
  }

  /** Frees the cache once the calls that were made are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Tokens as the addon takes them. Throws ERR_INVALID_ARGUMENT where there are none, or one is no token. */
export function checkTokens(
  tokens: readonly number[] | Int32Array | Uint32Array,
  vocabSize: number,
): Int32Array {
  const isList =
    Array.isArray(tokens) || (ArrayBuffer.isView(tokens) && !(tokens instanceof DataView));
  if (!isList) throw invalid('tokens', 'an array of token ids', tokens);
  if (tokens.length === 0) throw invalid('tokens', 'at least one token id', tokens);
  const list = new Int32Array(tokens.length);
  for (let i = 0; i < list.length; i++) {
    checkInteger(`tokens[${i}]`, tokens[i], 0, vocabSize - 1);
    list[i] = tokens[i] as number;
  }
  return list;
}

/** What the addon takes for SessionOptions; types are checked there. */
export function nativeSessionOptions(options: SessionOptions): NativeSessionOptions {
  checkObject('options', options);
  const { maxKvLen, kType, vType, selectiveV } = options;
  if (maxKvLen !== undefined) checkInteger('maxKvLen', maxKvLen, 1, 2 ** 31 - 1);
  refuseNull('kType', 'an element type', kType);
  refuseNull('vType', 'an element type', vType);
  const { topK, renormalize } = checkSelectiveV(selectiveV);
  return { maxKvLen, kType, vType, selectiveTopK: topK, renormalize };
}
