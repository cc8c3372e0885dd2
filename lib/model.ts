import { join } from 'node:path';
import { throwIfAborted, withCancel } from './abort';
import type { NativeModel, NativeModelConfig, NativeModelOptions } from './addon';
import { Device, type DeviceId, nativeDevice, openDevice } from './device';
import {
  awaitNative,
  callNative,
  checkInteger,
  checkObject,
  DiffqkvError,
  invalid,
  refuseNull,
} from './errors';
import { type GenerateOptions, generate, type Prompt } from './generate';
import type { Generation } from './generation';
import { packageRoot } from './paths';
import { presets } from './presets';
import { Scheduler } from './scheduler';
import { createSession, nativeSessionOptions, type Session, type SessionOptions } from './session';
import type { DType } from './tensor';
import { Tokenizer } from './tokenizer';

/**
 * A model's shape, in this project's words, whatever config.json calls it. A Llama is the case numKHeads = numVHeads.
 * @interface
 */
export type ModelConfig = Readonly<NativeModelConfig>;

/** Where a model goes. */
export interface ModelOptions {
  /** An open device, which stays open when the model is disposed, or the id of one, which closes with it. Default 'auto'. */
  device?: Device | DeviceId;
  /** Type of weights and activations: 'f32', 'f16' or 'bf16'. Default: the checkpoint's. */
  dtype?: DType;
  /**
   * The most bytes of pages that all sessions may use together. Past it, whoever asks for more gets ERR_KV_CACHE_FULL. Memory is
   * taken in slabs of 8 pages for each pair of cache types, so that it may be somewhat more. Default: as much as the device has.
   */
  kvCacheBytes?: number;
  /**
   * Of those, how many the prefix cache may keep: pages of 64 tokens that outlive their sessions, so that a prompt which begins
   * as an earlier one did skips their prefill. What is skipped is not computed again, so that logits may differ in the last bits
   * from those of a whole prefill. Default 0: no prefix cache.
   */
  prefixCacheBytes?: number;
}

/** The KV caches of a model's sessions, taken together. */
export interface KvCacheUsage {
  /** Tokens that a page holds. */
  pageTokens: number;
  /** Pages in use, each counted once whoever shares it. */
  pages: number;
  /** Of those, how many the prefix cache keeps. */
  prefixPages: number;
  /** Bytes of the pages in use, K and V. */
  bytes: number;
  /** The limit, where one was given. */
  maxBytes?: number;
}

/** How {@link Model.load} loads. */
export interface LoadOptions extends ModelOptions {
  /** Called as weights come in. What it throws ends the load, as its error. */
  onProgress?: (progress: { loadedBytes: number; totalBytes: number }) => void;
  /** Ends the load: it rejects with code ABORT_ERR. */
  signal?: AbortSignal;
}

/** The directory of the embedded model: a small Sigma that writes command-line help pages. */
export const defaultModelDirectory: string = join(packageRoot, 'models', 'sigma-tldr');

export let scheduler: (model: Model) => Scheduler;

/**
 * A model on a device. Its weights do not change; any number of sessions share them. Use after `dispose`, or after its device's,
 * is ERR_DISPOSED.
 */
export class Model implements Disposable {
  /** Its shape, as config.json gives it. */
  readonly config: ModelConfig;
  /** Where it runs. */
  readonly device: Device;
  /** Null where the directory has no tokenizer.json, and for random models. */
  readonly tokenizer: Tokenizer | null;
  /** Type of weights and activations. */
  readonly dtype: DType;
  /** Parameters of the checkpoint; a tied embedding counts once. */
  readonly numParameters: number;
  /** Bytes that the weights take in device memory. */
  readonly weightBytes: number;
  readonly #native: NativeModel;
  readonly #ownsDevice: boolean;
  readonly #scheduler: Scheduler;

  static {
    scheduler = (model) => model.#scheduler;
  }

  private constructor(
    native: NativeModel,
    device: Device,
    ownsDevice: boolean,
    tokenizer: Tokenizer | null,
  ) {
    this.#native = native;
    this.#ownsDevice = ownsDevice;
    this.#scheduler = new Scheduler((turns) => native.step(turns));
    this.device = device;
    this.tokenizer = tokenizer;
    this.config = Object.freeze(native.config);
    this.dtype = native.dtype;
    this.numParameters = native.numParameters;
    this.weightBytes = native.weightBytes;
  }

  /**
   * Loads a checkpoint in Hugging Face form: config.json, model.safetensors or its index and shards, and where they are
   * there tokenizer.json and tokenizer_config.json. Rejects with ERR_INVALID_CHECKPOINT (names file and tensor),
   * ERR_UNSUPPORTED_MODEL, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE, ABORT_ERR.
   */
  static async load(directory: string, options: LoadOptions = {}): Promise<Model> {
    if (typeof directory !== 'string' || directory === '')
      throw invalid('directory', 'a path', directory);
    checkObject('options', options);
    const { onProgress, signal } = options;
    const nativeOptions = nativeModelOptions(options);
    if (onProgress !== undefined && typeof onProgress !== 'function')
      throw invalid('onProgress', 'a function', onProgress);
    throwIfAborted(signal);
    const report =
      onProgress &&
      ((loadedBytes: number, totalBytes: number) => onProgress({ loadedBytes, totalBytes }));
    return Model.#onDevice(options.device, async (device, ownsDevice) => {
      const native = await withCancel(signal, (cancel) =>
        nativeDevice(device).loadModel(directory, nativeOptions, report, cancel),
      );
      try {
        const tokenizer = await Tokenizer.fromDirectory(directory);
        throwIfAborted(signal);
        return callNative(() => new Model(native, device, ownsDevice, tokenizer));
      } catch (error) {
        native.dispose();
        throw error;
      }
    });
  }

  /**
   * A model with random weights, for benchmarks: `config` is an object as in config.json, or the name of one of the
   * paper's models (arXiv 2501.13629, tables 2 and 14). `seed`: an integer in [0, 2^64), default 0; the same seed gives the
   * same weights. Rejects with ERR_INVALID_ARGUMENT, ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL (what is wrong with the
   * config), ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE.
   */
  static async random(
    config: keyof typeof presets | Record<string, unknown>,
    options: ModelOptions & { seed?: number | bigint } = {},
  ): Promise<Model> {
    const json = configJson(config);
    checkObject('options', options);
    const { seed = 0 } = options;
    const nativeOptions = nativeModelOptions(options);
    if (typeof seed !== 'bigint' && !Number.isSafeInteger(seed))
      throw invalid('seed', 'an integer from 0 to 2^64 - 1', seed);
    return Model.#onDevice(options.device, async (device, ownsDevice) => {
      const native = await awaitNative(() =>
        nativeDevice(device).randomModel(json, nativeOptions, BigInt(seed)),
      );
      return callNative(() => new Model(native, device, ownsDevice, null));
    });
  }

  static async #onDevice(
    where: Device | DeviceId | undefined,
    make: (device: Device, owns: boolean) => Promise<Model>,
  ): Promise<Model> {
    if (where instanceof Device) return make(where, false);
    const device = await openDevice(where);
    try {
      return await make(device, true);
    } catch (error) {
      device.dispose();
      throw error;
    }
  }

  /** Starts a sequence with an empty cache. ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ERR_DISPOSED. */
  async createSession(options: SessionOptions = {}): Promise<Session> {
    const native = nativeSessionOptions(options);
    return createSession(this, await awaitNative(() => this.#native.createSession(native)));
  }

  /** What the caches of all sessions take now. */
  get kvCache(): KvCacheUsage {
    return callNative(() => this.#native.kvCache);
  }

  /**
   * Writes on from a prompt: iterate over the result for tokens and text as they come, or await its `result`. Never throws
   * by itself: what is wrong with the arguments is the error of the generation (ERR_INVALID_ARGUMENT;
   * ERR_UNSUPPORTED_MODEL for messages without a chat template), and so is ERR_KV_CACHE_FULL for a prompt that is too long,
   * ERR_OUT_OF_MEMORY, ERR_DISPOSED. Generations of a model that run at once are batched.
   */
  generate(prompt: Prompt, options?: GenerateOptions): Generation {
    return generate(this, prompt, options);
  }

  /** Frees the weights, the sessions and a device of its own, once the calls that were made are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
    if (this.#ownsDevice) this.device.dispose();
  }

  /** `dispose`, for `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

function nativeModelOptions({
  dtype,
  kvCacheBytes,
  prefixCacheBytes,
}: ModelOptions): NativeModelOptions {
  refuseNull('dtype', "'f32', 'f16' or 'bf16'", dtype);
  if (kvCacheBytes !== undefined)
    checkInteger('kvCacheBytes', kvCacheBytes, 0, Number.MAX_SAFE_INTEGER);
  if (prefixCacheBytes !== undefined)
    checkInteger('prefixCacheBytes', prefixCacheBytes, 0, Number.MAX_SAFE_INTEGER);
  return { dtype, kvCacheBytes, prefixCacheBytes };
}

function configJson(config: unknown): string {
  if (typeof config === 'string') {
    if (!Object.hasOwn(presets, config))
      throw invalid('config', `an object, or one of ${Object.keys(presets).join(', ')}`, config);
    return JSON.stringify(presets[config as keyof typeof presets]);
  }
  checkObject('config', config);
  try {
    return JSON.stringify(config);
  } catch (error) {
    throw new DiffqkvError(
      'ERR_INVALID_ARGUMENT',
      `config is not JSON: ${(error as Error).message}`,
    );
  }
}
