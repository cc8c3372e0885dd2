import { join } from 'node:path';
import { throwIfAborted, withCancel } from './abort';
import type {
  NativeModel,
  NativeModelConfig,
  NativeModelOptions,
  NativeWeightBytes,
} from './addon';
import { Chat, type ChatOptions } from './conversation';
import { Device, type DeviceId, openDevice } from './device';
import { type EmbedOptions, embed } from './embed';
import {
  awaitNative,
  callNative,
  checkBoolean,
  checkCallback,
  checkGroupSize,
  checkInteger,
  checkNotNull,
  checkObject,
  invalid,
  invalidArgument,
} from './errors';
import { explain } from './explain';
import { type GenerateOptions, generate, type Prompt } from './generate';
import type { Generation } from './generation';
import { modelDirectory } from './hub/index';
import { endProcess, native, scheduler } from './internal';
import { type OptionNames, readOptions } from './options';
import { packageRoot } from './paths';
import { presets } from './presets';
import { checkReceiver } from './receiver';
import type { TextOrTokens } from './row_pass';
import { checkSeed } from './sampling';
import { Scheduler } from './scheduler';
import { type Score, type ScoreOptions, score } from './score';
import { nativeSessionOptions, Session, type SessionOptions } from './session';
import { type LoadSessionOptions, loadNativeSession } from './session_file';
import type { DType } from './tensor';
import { Tokenizer } from './tokenizer';

/**
 * A model's shape, in this project's terms, whatever config.json calls it. A Llama model is the
 * case numKHeads = numVHeads.
 * @interface
 */
export type ModelConfig = Readonly<NativeModelConfig>;

/**
 * Bytes of the weights of a model in device memory, by part.
 * @interface
 */
export type WeightBytesByPart = Readonly<NativeWeightBytes>;

/** Options of {@link Model.load} and {@link Model.random}: the device, types, cache limits. */
export interface ModelOptions {
  /**
   * An open device, which stays open when the model is disposed of, or the id of a device to open,
   * which the model disposes of with itself. Default 'auto'.
   */
  device?: Device | DeviceId;
  /**
   * Type of weights and activations: 'f32', 'f16' or 'bf16'. Default: the type of the matrices in the
   * checkpoint, or 'f32' if these have different types. A value that overflows this type rejects
   * with ERR_UNSUPPORTED_MODEL.
   */
  dtype?: DType;
  /**
   * Quantizes the matrices of the linear layers as they are loaded: to 8 or 4 bits, with a scale for
   * each group of elements of a row. Decoding then reads half or about 3.5 times fewer bytes than in
   * 16 bits. Activations, the embedding and the norms keep `dtype`. Default: matrices have the type
   * `dtype`, or keep the integers of a quantized checkpoint.
   */
  weightType?: 'i8' | 'i4';
  /**
   * Number of elements that share a scale: 32, 64 or 128. Fewer are more precise; each scale has 2
   * bytes. Default 32.
   */
  weightGroupSize?: number;
  /**
   * Whether the output matrix, from the last hidden state to the logits, is quantized with the others.
   * If it is shared with the embedding, a quantized copy is made. Default true.
   */
  quantizeLmHead?: boolean;
  /**
   * Maximum bytes of KV cache pages in use, for all sessions and the prefix cache together. A call
   * that needs more rejects with ERR_KV_CACHE_FULL. Pages are allocated in slabs of 8 for each pair
   * of cache types, so allocated memory may exceed the limit. Default: limited by the device's
   * memory only.
   */
  kvCacheBytes?: number;
  /**
   * Maximum bytes, out of kvCacheBytes, of pages that the prefix cache keeps after their sessions
   * are disposed of. A prompt that begins like an earlier one skips the prefill of the kept pages
   * (64 tokens each). Its logits may differ in the last bits from those of a full prefill. Default
   * 0: no prefix cache.
   */
  prefixCacheBytes?: number;
}

const MODEL_OPTIONS: OptionNames<ModelOptions> = {
  device: true,
  dtype: true,
  weightType: true,
  weightGroupSize: true,
  quantizeLmHead: true,
  kvCacheBytes: true,
  prefixCacheBytes: true,
};

/** Use of the KV cache by all sessions of a model. */
export interface KvCacheUsage {
  /** Tokens per page. */
  pageTokens: number;
  /** Pages in use. A shared page counts once. */
  pages: number;
  /** Pages in use that the prefix cache keeps. */
  prefixPages: number;
  /** Bytes of the pages in use, K and V together. */
  bytes: number;
  /** The limit `kvCacheBytes`; absent if it was not set. */
  maxBytes?: number;
}

/** How the decoding steps of a model reach a GPU. */
export interface DecodeGraphs {
  /**
   * CUDA graphs that the model holds, at most 32: one for each number of sequences, range of lengths
   * and pair of cache types that it has decoded twice.
   */
  recorded: number;
  /** Decoding steps that were replayed from a graph. The others were launched kernel by kernel. */
  replayed: number;
  /** Why steps are no longer recorded, so that all are launched; null if they are. */
  failure: string | null;
}

/** Options of {@link Model.load}. */
export interface LoadOptions extends ModelOptions {
  /** Called as weights are loaded. If it throws, the load rejects with that error. */
  onProgress?: (progress: { loadedBytes: number; totalBytes: number }) => void;
  /**
   * Called as files are downloaded, if any are. If it throws, the load rejects with that error.
   * Files that an earlier load has downloaded in part begin with these bytes.
   */
  onDownload?: (progress: { downloadedBytes: number; totalBytes: number }) => void;
  /**
   * Aborts the download and the load, which reject with ABORT_ERR. A later load of the model
   * continues the download.
   */
  signal?: AbortSignal;
}

const LOAD_OPTIONS: OptionNames<LoadOptions> = {
  ...MODEL_OPTIONS,
  onProgress: true,
  onDownload: true,
  signal: true,
};

/** Directory of the embedded model, a small Sigma model that writes help pages of commands. */
export const defaultModelDirectory: string = join(packageRoot, 'models', 'sigma-tldr');

/**
 * A model on a device. Its weights do not change, and any number of sessions share them. After
 * `dispose`, or after its device is disposed of, methods throw or reject with ERR_DISPOSED.
 */
export class Model implements Disposable {
  /** The shape, read from config.json. */
  readonly config: ModelConfig;
  /** The device of the weights and of all sessions. */
  readonly device: Device;
  /** Null if the directory has no tokenizer.json, and for random models. */
  readonly tokenizer: Tokenizer | null;
  /** Type of activations, and of weights unless they are quantized. */
  readonly dtype: DType;
  /**
   * Type of the matrices of the linear layers: `dtype`, or 'i8' or 'i4' if any are quantized. If the
   * matrices of a quantized checkpoint have both types, the one of more elements.
   */
  readonly weightType: DType | 'i4';
  /** Number of parameters in the checkpoint. A tied embedding counts once. */
  readonly numParameters: number;
  /** Bytes of the weights in device memory. */
  readonly weightBytes: number;
  /** The same by part of the model. */
  readonly weightBytesByPart: WeightBytesByPart;
  readonly #native: NativeModel;
  readonly #ownsDevice: boolean;
  readonly #scheduler: Scheduler;

  private constructor(
    model: NativeModel,
    { device, ownsDevice }: DeviceOfModel,
    tokenizer: Tokenizer | null,
  ) {
    this.#native = model;
    this.#ownsDevice = ownsDevice;
    this.#scheduler = new Scheduler((items) => model.step({ items }));
    this.device = device;
    this.tokenizer = tokenizer;
    this.config = Object.freeze(model.config);
    this.dtype = model.dtype;
    this.weightType = model.weightType;
    this.numParameters = model.numParameters;
    this.weightBytesByPart = Object.freeze(model.weightBytesByPart);
    this.weightBytes = Object.values(this.weightBytesByPart).reduce((sum, part) => sum + part, 0);
  }

  /**
   * Loads a checkpoint in Hugging Face format: config.json, model.safetensors (or its index and
   * shards), and, if present, tokenizer.json, tokenizer_config.json and chat_template.jinja.
   *
   * `source` is its directory, or the id of a model on the Hugging Face hub, `org/name` or
   * `org/name@revision`, by default revision main. An existing path is never an id. What the loader
   * needs is downloaded into the cache that Python's huggingface_hub uses. The environment variables
   * HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME and HF_HUB_DOWNLOAD_TIMEOUT (in
   * seconds) have the meaning that they have there. A model that is in the cache costs one request,
   * which resolves the revision; with HF_HUB_OFFLINE=1 it costs none. If the hub cannot be reached,
   * the revision that is in the cache is loaded, and a process warning says so.
   *
   * Rejects with ERR_INVALID_ARGUMENT, ERR_INVALID_CHECKPOINT (the message names file and tensor),
   * ERR_UNSUPPORTED_MODEL, ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE or ABORT_ERR; a download also
   * with ERR_MODEL_NOT_FOUND, ERR_ACCESS_DENIED, ERR_NETWORK, ERR_INVALID_DOWNLOAD or ERR_CACHE. If
   * the directory is something else, such as a Git LFS clone without its files, a GGUF file or a LoRA
   * adapter, the message says so and what to do.
   */
  static async load(source: string, options: LoadOptions = {}): Promise<Model> {
    if (typeof source !== 'string' || source === '') {
      throw invalid('source', 'a path or the id of a model', source);
    }
    const given = readOptions('options', options, LOAD_OPTIONS);
    const { onProgress, onDownload, signal } = given;
    const nativeOptions = nativeModelOptions(given);
    checkCallback('onProgress', onProgress);
    checkCallback('onDownload', onDownload);
    throwIfAborted(signal);
    const report =
      onProgress &&
      ((loadedBytes: number, totalBytes: number) => onProgress({ loadedBytes, totalBytes }));
    let directory = source;
    const load = async (where: DeviceOfModel) => {
      directory = await modelDirectory(source, { onDownload, signal });
      const model = await withCancel(signal, (cancel) =>
        where.device[native].loadModel({ directory, ...nativeOptions, onProgress: report, cancel }),
      );
      let tokenizer: Tokenizer | null = null;
      try {
        if (model.hasUntiedLmHead) {
          process.emitWarning(
            `${directory}: tie_word_embeddings is true in config.json, but lm_head.weight differs from the embedding. lm_head.weight is used`,
            { type: 'DiffqkvWarning', code: 'DIFFQKV_UNTIED' },
          );
        }
        tokenizer = await Tokenizer.fromDirectory(directory, { signal });
        throwIfAborted(signal);
        return callNative(() => new Model(model, where, tokenizer));
      } catch (error) {
        tokenizer?.[endProcess]();
        model.dispose();
        throw error;
      }
    };
    try {
      return await Model.#onDevice(given.device, load);
    } catch (error) {
      throw await explain(directory, error);
    }
  }

  /**
   * Creates a model with random weights, for benchmarks. `config` is an object with the fields of
   * config.json, or the name of a model of the paper (arXiv 2501.13629, tables 2 and 14). `seed` is
   * an integer from 0 to 2^64 - 1, by default 0; the same seed gives the same weights. Rejects with
   * ERR_INVALID_ARGUMENT, ERR_INVALID_CHECKPOINT or ERR_UNSUPPORTED_MODEL if the config is invalid,
   * ERR_OUT_OF_MEMORY, ERR_DEVICE_UNAVAILABLE.
   */
  static async random(
    config: keyof typeof presets | Record<string, unknown>,
    options: ModelOptions & { seed?: number | bigint } = {},
  ): Promise<Model> {
    const json = configJson(config);
    const given = readOptions('options', options, { ...MODEL_OPTIONS, seed: true });
    const seed = checkSeed(given.seed === undefined ? 0 : given.seed);
    const nativeOptions = nativeModelOptions(given);
    return Model.#onDevice(given.device, async (where) => {
      const model = await awaitNative(() =>
        where.device[native].randomModel({ config: json, ...nativeOptions, seed }),
      );
      return callNative(() => new Model(model, where, null));
    });
  }

  static async #onDevice(
    device: Device | DeviceId | undefined,
    create: (where: DeviceOfModel) => Promise<Model>,
  ): Promise<Model> {
    if (device instanceof Device) return create({ device, ownsDevice: false });
    const opened = await openDevice(device);
    try {
      return await create({ device: opened, ownsDevice: true });
    } catch (error) {
      opened.dispose();
      throw error;
    }
  }

  /**
   * True only for an object that this class created. A Proxy of a model, or another object with
   * this prototype, has no native model.
   * @internal
   */
  static [Symbol.hasInstance](value: unknown): value is Model {
    return typeof value === 'object' && value !== null && #native in value;
  }

  /** @internal */
  get [scheduler](): Scheduler {
    return this.#scheduler;
  }

  /** @internal */
  get [native](): NativeModel {
    return this.#native;
  }

  /**
   * Creates a sequence with an empty KV cache. Rejects with ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY
   * or ERR_DISPOSED.
   */
  async createSession(options: SessionOptions = {}): Promise<Session> {
    const nativeOptions = nativeSessionOptions(options);
    const session = await awaitNative(() => this.#native.createSession(nativeOptions));
    return Session.create(this, session);
  }

  /**
   * Creates a session from a file that `session.save` wrote, with the tokens, cache types and
   * selective V of the saved one. It continues with the same bits on the same device. The prefix cache
   * neither gives it pages nor takes them. Rejects with ERR_SESSION_FILE if the file cannot be read,
   * was truncated or changed, or was saved by another version of the format, another kind of device
   * or another model: one with other settings, types or weights, as far as samples of all weights
   * show. Also rejects with ERR_KV_CACHE_FULL if its pages exceed kvCacheBytes,
   * ERR_INVALID_ARGUMENT, ERR_OUT_OF_MEMORY, ABORT_ERR or ERR_DISPOSED.
   */
  async loadSession(file: string, options: LoadSessionOptions = {}): Promise<Session> {
    return Session.create(this, await loadNativeSession(this, file, options));
  }

  /** Current use of the KV cache by all sessions of this model. */
  get kvCache(): KvCacheUsage {
    return callNative(() => this.#native.kvCache);
  }

  /** The CUDA graphs of this model's decoding steps now; null on the CPU. */
  get decodeGraphs(): DecodeGraphs | null {
    return callNative(() => this.#native.decodeGraphs);
  }

  /**
   * Generates tokens that continue a prompt. Iterate over the returned object for tokens and text,
   * or await its `result`. Concurrent generations of a model are batched. This method never throws.
   * The generation fails with ERR_INVALID_ARGUMENT if an argument is invalid, ERR_UNSUPPORTED_MODEL
   * if the prompt is messages and the checkpoint has no chat template, ERR_KV_CACHE_FULL if the
   * prompt is too long, ERR_OUT_OF_MEMORY, ERR_DISPOSED.
   */
  generate(prompt: Prompt, options?: GenerateOptions): Generation {
    return generate(this, this.#scheduler, prompt, options);
  }

  /**
   * Resolves to the log probability of every token of a text after the first, given those before it:
   * those of the model's own distribution, within rounding equal to those of decoding. The text is
   * computed in chunks, and generations continue between them. It uses no session of the caller, and
   * a KV cache for the text while it runs. Rejects with ERR_INVALID_ARGUMENT, ERR_KV_CACHE_FULL if
   * the text is longer than the context, ERR_UNSUPPORTED_MODEL if a logit is NaN, ABORT_ERR,
   * ERR_OUT_OF_MEMORY, ERR_DISPOSED.
   */
  async score(text: TextOrTokens, options?: ScoreOptions): Promise<Score> {
    return score(this, this.#scheduler, text, options);
  }

  /**
   * Resolves to an embedding of each text, [hiddenSize]: from the hidden states after the final norm,
   * added in float64. It does not depend on what else is computed. Texts get special tokens as
   * prompts do. Rejects like {@link Model.score}.
   */
  async embed(texts: readonly TextOrTokens[], options?: EmbedOptions): Promise<Float32Array[]> {
    return embed(this, this.#scheduler, texts, options);
  }

  /**
   * Creates a chat: a conversation and a session that keeps it in the KV cache. Rejects like
   * `createSession`, with ERR_UNSUPPORTED_MODEL if the checkpoint has no chat template, and with
   * ERR_INVALID_ARGUMENT if the template rejects the system message.
   */
  async createChat(options: ChatOptions = {}): Promise<Chat> {
    return Chat.create(this, this.#scheduler, options);
  }

  /**
   * Frees the weights, the sessions, and the device if the model opened it, after earlier calls are
   * done. A second call does nothing.
   */
  dispose(): void {
    this.#native.dispose();
    this.tokenizer?.[endProcess]();
    if (this.#ownsDevice) this.device.dispose();
  }

  /** Calls `dispose`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

checkReceiver(Model, 'a model');

interface DeviceOfModel {
  device: Device;
  ownsDevice: boolean;
}

function nativeModelOptions(options: ModelOptions): NativeModelOptions {
  const { dtype, kvCacheBytes, prefixCacheBytes } = options;
  const { weightType, weightGroupSize, quantizeLmHead } = options;
  checkNotNull('dtype', "'f32', 'f16' or 'bf16'", dtype);
  if (weightType !== undefined && weightType !== 'i8' && weightType !== 'i4') {
    throw invalid('weightType', "'i8' or 'i4'", weightType);
  }
  if (weightGroupSize !== undefined) checkGroupSize('weightGroupSize', weightGroupSize);
  if (quantizeLmHead !== undefined) checkBoolean('quantizeLmHead', quantizeLmHead);
  if (weightType === undefined && (weightGroupSize ?? quantizeLmHead) !== undefined) {
    const name = weightGroupSize === undefined ? 'quantizeLmHead' : 'weightGroupSize';
    throw invalidArgument(`${name} is given without weightType; add weightType: 'i8' or 'i4'`);
  }
  if (kvCacheBytes !== undefined) checkInteger('kvCacheBytes', kvCacheBytes, 0);
  if (prefixCacheBytes !== undefined) checkInteger('prefixCacheBytes', prefixCacheBytes, 0);
  return { dtype, weightType, weightGroupSize, quantizeLmHead, kvCacheBytes, prefixCacheBytes };
}

function configJson(config: unknown): string {
  if (typeof config === 'string') {
    if (!Object.hasOwn(presets, config)) {
      throw invalid('config', `an object, or one of ${Object.keys(presets).join(', ')}`, config);
    }
    return JSON.stringify(presets[config as keyof typeof presets]);
  }
  checkObject('config', config);
  try {
    return JSON.stringify(config);
  } catch (error) {
    throw invalidArgument(`config cannot be written as JSON: ${(error as Error).message}`);
  }
}
