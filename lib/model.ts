import { join } from 'node:path';
import { throwIfAborted, withCancel } from './abort';
import type { NativeModel, NativeModelConfig } from './addon';
import { Device, type DeviceId, nativeDevice, openDevice } from './device';
import { awaitNative, checkObject, DiffqkvError, invalid, refuseNull } from './errors';
import { type GenerateOptions, generate, type Prompt } from './generate';
import type { Generation } from './generation';
import { packageRoot } from './paths';
import { presets } from './presets';
import { createSession, nativeSessionOptions, type Session, type SessionOptions } from './session';
import type { DType } from './tensor';
import { Tokenizer } from './tokenizer';

/** A model's shape. `augQSize` is 0 without augmented Q; a Llama is the case numKHeads = numVHeads. */
export type ModelConfig = Readonly<NativeModelConfig>;

/** Where a model goes. */
export interface ModelOptions {
  /** An open device, which stays open when the model is disposed, or the id of one, which closes with it. Default 'auto'. */
  device?: Device | DeviceId;
  /** Type of weights and activations: 'f32', 'f16' or 'bf16'. Default: the checkpoint's. */
  dtype?: DType;
}

export interface LoadOptions extends ModelOptions {
  /** Called as weights come in. What it throws ends the load, as its error. */
  onProgress?: (progress: { loadedBytes: number; totalBytes: number }) => void;
  /** Ends the load: it rejects with code ABORT_ERR. */
  signal?: AbortSignal;
}

/** The directory of the embedded model: a small Sigma that writes command-line help pages. */
export const defaultModelDirectory: string = join(packageRoot, 'models', 'sigma-tldr');

/** A model on a device. Its weights do not change; any number of sessions share them. */
export class Model implements Disposable {
  readonly config: ModelConfig;
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

  private constructor(native: NativeModel, device: Device, ownsDevice: boolean, tokenizer: Tokenizer | null) {
    this.#native = native;
    this.#ownsDevice = ownsDevice;
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
    if (typeof directory !== 'string' || directory === '') throw invalid('directory', 'a path', directory);
    checkObject('options', options);
    const { dtype, onProgress, signal } = options;
    refuseNull('dtype', "'f32', 'f16' or 'bf16'", dtype);
    if (onProgress !== undefined && typeof onProgress !== 'function')
      throw invalid('onProgress', 'a function', onProgress);
    throwIfAborted(signal);
    const report = onProgress && ((loadedBytes: number, totalBytes: number) => onProgress({ loadedBytes, totalBytes }));
    return Model.#onDevice(options.device, async (device, ownsDevice) => {
      const native = await withCancel(signal, (cancel) =>
        nativeDevice(device).loadModel(directory, dtype, report, cancel),
      );
      try {
        const tokenizer = await Tokenizer.fromDirectory(directory);
        throwIfAborted(signal);
        return new Model(native, device, ownsDevice, tokenizer);
      } catch (error) {
        native.dispose();
        throw error;
      }
    });
  }

  /**
   * A model with random weights, for benchmarks: `config` is an object as in config.json, or the name of one of the
   * paper's models. `seed`: an integer in [0, 2^64), default 0; the same seed gives the same weights.
   */
  static async random(
    config: keyof typeof presets | Record<string, unknown>,
    options: ModelOptions & { seed?: number | bigint } = {},
  ): Promise<Model> {
    const json = configJson(config);
    checkObject('options', options);
    const { dtype, seed = 0 } = options;
    refuseNull('dtype', "'f32', 'f16' or 'bf16'", dtype);
    if (typeof seed !== 'bigint' && !Number.isSafeInteger(seed))
      throw invalid('seed', 'an integer from 0 to 2^64 - 1', seed);
    return Model.#onDevice(options.device, async (device, ownsDevice) => {
      const native = await awaitNative(() => nativeDevice(device).randomModel(json, dtype, BigInt(seed)));
      return new Model(native, device, ownsDevice, null);
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

  /** Writes on from a prompt: iterate over the result for tokens and text as they come, or await its `result`. */
  generate(prompt: Prompt, options?: GenerateOptions): Generation {
    return generate(this, prompt, options);
  }

  /** Frees the weights, the sessions and a device of its own, once the calls that were made are done. Again: does nothing. */
  dispose(): void {
    this.#native.dispose();
    if (this.#ownsDevice) this.device.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
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
    throw new DiffqkvError('ERR_INVALID_ARGUMENT', `config is not JSON: ${(error as Error).message}`);
  }
}
