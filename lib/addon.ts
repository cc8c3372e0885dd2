// The typed interface of csrc/addon, and the loading of the native module.
//
// A call that has arguments takes one object. A method that returns a promise runs on the device's
// executor thread, in the order of the calls. Errors are Errors with a `code` of lib/errors.ts.
// Input arrays are copied before the call returns. Output arrays are written on the JavaScript
// thread just before the promise resolves.

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { DiffqkvError } from './errors';
import { packageRoot } from './paths';

export type NativeDType = 'f32' | 'f16' | 'bf16' | 'i32' | 'i8' | 'f8e4m3';

export interface NativeDeviceInfo {
  id: string;
  kind: 'cpu' | 'cuda';
  name: string;
  usable: boolean;
  reason?: string;
  totalMemory: number;
  computeCapability?: string;
  /** For example { simd: 'avx512_bf16+amx', linear: 'oneDNN 2.6.3', threads: '2' }. */
  details: Record<string, string>;
}

/** `cancel` makes the call that it was passed to reject with ABORT_ERR. */
export interface NativeCancel {
  cancel(): void;
}

export interface NativeTensor {
  readonly byteLength: number;
  /** Fills `array`, a Float32Array (converted) or the typed array of the dtype, of equal length. */
  readInto(options: { array: ArrayBufferView }): Promise<void>;
  write(options: { array: ArrayBufferView }): Promise<void>;
  dispose(): void;
}

export interface NativeDevice {
  readonly info: NativeDeviceInfo;
  /** `data`: undefined for zeros, null to leave the memory uninitialized. */
  tensor(options: {
    dtype: NativeDType;
    shape: number[];
    data?: ArrayBufferView | null;
  }): NativeTensor;
  synchronize(): Promise<void>;
  /** Queues a time stamp and returns its handle, for `elapsedMs`. */
  recordEvent(): object;
  elapsedMs(options: { start: object; stop: object }): Promise<number>;
  /**
   * Measures a limit of the CPU once; see csrc/backend/cpu_ceilings.h. Rejects with
   * ERR_DEVICE_UNAVAILABLE on every device but `cpu`.
   */
  measureCeiling(request: NativeCeilingRequest): Promise<number[]>;
  dispose(): void;

  loadModel(
    options: NativeModelOptions & {
      directory: string;
      onProgress?: (loadedBytes: number, totalBytes: number) => void;
      cancel?: NativeCancel;
    },
  ): Promise<NativeModel>;
  /** `config` is the text of a config.json. */
  randomModel(options: NativeModelOptions & { config: string; seed: bigint }): Promise<NativeModel>;
}

export interface NativeSelectiveV {
  /** At least 1. */
  topK: number;
  renormalize: boolean;
}

/** out [m, n] = x [m, k] weight [n, k]^T, with x and weight in bf16. */
export interface NativeMatrix {
  m: number;
  k: number;
  n: number;
  out: 'bf16' | 'f32';
}

/**
 * - `read`: GB/s (1e9) of reading a buffer larger than the caches, in `streams` (1, 2 or 4) parts
 *   side by side, with prefetch that many bytes ahead (0: none).
 * - `copy`: GB/s, read and written, of copying one half of that buffer to the other half.
 * - `multiply`: GFLOP/s of the CPU's fastest multiply instruction, for f32 or bf16, on registers.
 * - `matrices`: milliseconds of each matrix by oneDNN with its first weight, then with its second,
 *   up to `numWeights`. Layout `plain` is row-major; `packed` is the one that oneDNN prefers.
 */
export type NativeCeilingRequest =
  | { what: 'read'; streams: number; prefetchBytes: number }
  | { what: 'copy' | 'multiply' }
  | {
      what: 'matrices';
      matrices: readonly NativeMatrix[];
      numWeights: number;
      layout: 'packed' | 'plain';
    };

export interface NativeModelOptions {
  dtype?: NativeDType;
  weightType?: 'i8' | 'i4';
  weightGroupSize?: number;
  quantizeLmHead?: boolean;
  kvCacheBytes?: number;
  prefixCacheBytes?: number;
}

/** Bytes of the weights of a model in device memory. */
export interface NativeWeightBytes {
  /** The token embedding. */
  embedding: number;
  /** The LM head; 0 if it is the embedding. */
  output: number;
  /** Matrices and biases of attention. */
  attention: number;
  /** The MLP on Q, which contains W_q if the two are multiplied at load. */
  augmentedQ: number;
  /** Matrices and biases of the FFN. */
  ffn: number;
  /** Norms and the tables of RoPE. */
  other: number;
}

export interface NativeModel {
  /** The config that csrc/model/config.cc read. */
  readonly config: NativeModelConfig;
  readonly dtype: NativeDType;
  readonly weightType: NativeDType | 'i4';
  readonly numParameters: number;
  /** tie_word_embeddings is true, but the checkpoint has another lm_head, which is used. */
  readonly hasUntiedLmHead: boolean;
  readonly weightBytesByPart: NativeWeightBytes;
  readonly kvCache: NativeKvCache;
  readonly decodeGraphs: NativeDecodeGraphs | null;
  createSession(options: NativeSessionOptions): Promise<NativeSession>;
  /** The bytes whose hash tells models apart; see csrc/model/fingerprint.h. */
  fingerprint(): Promise<Uint8Array>;
  pageLayout(types: { kType: NativeDType; vType: NativeDType }): NativePageLayout;
  /** A session whose pages are undefined until `writePages` has written all of them. */
  restoreSession(options: Omit<NativeSavedSession, 'pageBytes'>): Promise<NativeSession>;
  /**
   * One batch step, the only call that runs the model. Each item has a different session of this
   * model. The results are in the order of the items. `cancel` ends all items with ABORT_ERR.
   */
  step(options: {
    items: readonly NativeBatchItem[];
    cancel?: NativeCancel;
  }): Promise<NativeBatchResult[]>;
  dispose(): void;
}

/** How the device stores K and V of 64 tokens of all layers. */
export interface NativePageLayout {
  /** The order of the elements. Devices with the same name can read each other's pages. */
  name: string;
  /** Bytes of a page. */
  bytes: number;
}

export interface NativeKvCache {
  pageTokens: number;
  pages: number;
  prefixPages: number;
  bytes: number;
  maxBytes?: number;
}

export interface NativeDecodeGraphs {
  recorded: number;
  replayed: number;
  failure: string | null;
}

export interface NativeBatchItem {
  session: NativeSession;
  /** Appended to the session. */
  tokens: Int32Array;
  /** How much of several tokens (a prompt) the step appends: the next chunk, or all of them. */
  chunks: 'next' | 'all';
  /** If undefined, no token is drawn. */
  sampling?: NativeSampling;
  /** Number of tokens that the generation has drawn before. Required with `sampling`. */
  draw?: number;
  /**
   * [ceil(vocabSize / 32)]. Bit t % 32 of word t / 32 says whether token t can be drawn. If
   * undefined, all can.
   */
  allowed?: Uint32Array;
  /** Numbers that are added to the logits of tokens before the draw. */
  biases?: NativeBiases;
  /**
   * Whether the token drawn is likely to be appended, and one more to be drawn: then a GPU may
   * compute that step ahead. Required with `sampling`.
   */
  continues?: boolean;
  /** If set, the result has `logprobs`, with so many of the most likely tokens: 0 to 20. */
  logprobs?: number;
  /**
   * `tokens` are the token to append and proposals for those that follow, at most 16 together. They
   * are decode steps in one pass. A proposal is appended only if it is the token drawn before it.
   * Requires `sampling`, without a mask, logits or rows, and with `rowBiases` instead of `biases`.
   */
  verifies?: boolean;
  /** Only with `verifies`: the biases of the draw after each of `tokens`. */
  rowBiases?: readonly NativeBiases[];
  /**
   * What the result has of the tokens in `rows`, in place of a token drawn. All tokens are computed,
   * whatever the prefix cache has.
   */
  rows?: 'logProbs' | 'lastHidden' | 'allHidden';
  /** Required with `rows: 'logProbs'`: element i is scored as the token after `tokens[i]`. */
  targets?: Int32Array;
  /** [vocabSize]. Filled with the logits of the last token when all tokens are appended. */
  logits?: Float32Array;
  /** Ends this item with ABORT_ERR, before it begins or within a prompt. */
  cancel?: NativeCancel;
}

export interface NativeBiases {
  /** In rising order. */
  tokens: Int32Array;
  /** One number for each token: finite, or -Infinity, which forbids the token. */
  values: Float32Array;
}

export interface NativeLogprobs {
  logprob: number;
  topTokens: number[];
  topLogprobs: number[];
}

export interface NativeBatchResult {
  /** Tokens of the item that were appended. */
  consumed: number;
  /** The token drawn; absent if tokens remain to be appended or `sampling` is undefined. */
  token?: number;
  /** Replaces `token` if the item verifies: the token drawn after each one that was appended. */
  drawn?: number[];
  /** The drawn token and the most likely ones, before penalties, masks and the temperature. */
  logprobs?: NativeLogprobs;
  /** The same for each of `drawn`. */
  drawnLogprobs?: NativeLogprobs[];
  /**
   * Values of the tokens appended. 'logProbs': the log probabilities of `targets`. 'lastHidden': the hidden state
   * after the last of all tokens; absent if tokens remain. 'allHidden': the sum of the hidden states.
   */
  rows?: Float64Array;
  /** The error of this item; its session is as before the step. */
  error?: unknown;
}

export interface NativeModelConfig {
  /** Family of checkpoints. */
  architecture:
    | 'sigma'
    | 'llama'
    | 'qwen2'
    | 'qwen3'
    | 'mistral'
    | 'ministral'
    | 'phi3'
    | 'gemma'
    | 'gemma2'
    | 'gemma3'
    | 'olmo2'
    | 'olmo3'
    | 'granite'
    | 'smollm3'
    | 'exaone4'
    | 'glm4'
    | 'helium'
    | 'seed_oss'
    | 'ernie4_5'
    | 'arcee'
    | 'diffllama'
    | 'minicpm3'
    | 'youtu';
  /** Elements of a token's row between layers. */
  hiddenSize: number;
  /** Inner size of the FFN. */
  intermediateSize: number;
  /** Inner size of the MLP of augmented Q (arXiv 2501.13629, section 2); 0 without augmented Q. */
  augQSize: number;
  /** Number of layers. */
  numLayers: number;
  /** Size of the vocabulary. Tokens are integers from 0 to vocabSize - 1. */
  vocabSize: number;
  /** Number of query heads, a multiple of numKHeads and of numVHeads. */
  numQHeads: number;
  /** Number of K heads. Q head i reads K head floor(i numKHeads / numQHeads). */
  numKHeads: number;
  /** Number of V heads. Q head i reads V head floor(i numVHeads / numQHeads). */
  numVHeads: number;
  /** Elements of a Q head, and of a K head in the dot product with Q. */
  headDimQk: number;
  /** Elements of a V head and of a head of the attention output. */
  headDimVo: number;
  /** Elements of a K head in the cache: headDimQk, or fewer with a keyLift. */
  headDimK: number;
  /**
   * Whether V is the K rows themselves (multi-head latent attention), so that the cache holds one row
   * of headDimK elements for both.
   */
  vSharesK: boolean;
  /** Number of keys that a query sees in layers with a window, with its own. Absent without any. */
  slidingWindow?: number;
  /** Number of layers with a window. */
  numWindowLayers: number;
  /**
   * Layer that lifts a cached K head to headDimQk ("half K dim"), for example 'linear after RoPE'
   * or 'swiglu before RoPE'. Absent without one.
   */
  keyLift?: string;
  /**
   * Base of the RoPE angles: pair d is rotated by ropeTheta^(-2d/headDimQk) radians per position.
   */
  ropeTheta: number;
  /** Added to the mean square in RMSNorm. */
  rmsNormEps: number;
  /**
   * Context length: the maximum number of tokens of a sequence. With dynamic RoPE, that of
   * config.json times the factor.
   */
  maxPositionEmbeddings: number;
  /**
   * How the checkpoint stores its matrices: 'GPTQ', 'AWQ', 'compressed-tensors' or 'FP8'. Absent if
   * they are not quantized.
   */
  quantization?: string;
  /** Whether the output layer shares the weights of the embedding. */
  tieWordEmbeddings: boolean;
  /** Begin-of-text token of config.json; absent if config.json has none. */
  bosTokenId?: number;
  /** End-of-text tokens of config.json and generation_config.json; may be empty. */
  eosTokenIds: number[];
}

export interface NativeSessionOptions {
  maxKvLen?: number;
  kType?: NativeDType;
  vType?: NativeDType;
  selectiveV?: NativeSelectiveV;
}

export interface NativeSampling {
  temperature: number;
  /** 0: all tokens. */
  topK: number;
  topP: number;
  minP: number;
  repetitionPenalty: number;
  seed: bigint;
}

export interface NativeSession {
  readonly kvLen: number;
  readonly maxKvLen: number;
  readonly kCacheBytes: number;
  readonly vCacheBytes: number;
  /** The tokens in the cache. */
  tokens(): Promise<Int32Array>;
  truncate(options: { kvLen: number }): Promise<void>;
  /**
   * Truncates to the longest common prefix of the session's tokens and `tokens` without the last
   * one, whose logits are to be computed. Resolves to its length.
   */
  keepPrefix(options: { tokens: Int32Array }): Promise<number>;
  fork(): Promise<NativeSession>;
  /** What a file has beside the pages. */
  saved(): Promise<NativeSavedSession>;
  /** Fills `array` with the bytes of the pages from `offset` on. */
  readPages(options: { offset: number; array: Uint8Array }): Promise<void>;
  writePages(options: { offset: number; array: Uint8Array }): Promise<void>;
  dispose(): void;
}

/** See SavedSession in csrc/model/session.h. */
export interface NativeSavedSession {
  maxKvLen: number;
  kType: NativeDType;
  vType: NativeDType;
  selectiveV?: NativeSelectiveV;
  tokens: Int32Array;
  ropeLength: number;
  promptLength: number;
  /** Tokens before it have no pages, because no window reaches them. */
  first: number;
  /** Bytes of all pages. */
  pageBytes: number;
}

export interface NativeAddon {
  /** `linear`: 'onednn' or 'plain'. `cuda`: whether the module has CUDA kernels. */
  readonly build: { linear: string; cuda: boolean; version: string };
  listDevices(): NativeDeviceInfo[];
  /** Rejects with ERR_DEVICE_UNAVAILABLE if there is no such device or it cannot be used. */
  openDevice(options: { id: string; threads?: number }): Promise<NativeDevice>;
  createCancel(): NativeCancel;
  /**
   * The config of a checkpoint, from the contents of its files. Without augQSize if only the tensors
   * tell it.
   */
  parseConfig(options: {
    directory: string;
    config: string;
    generationConfig?: string;
  }): Omit<NativeModelConfig, 'augQSize'>;
  /** Throws ERR_OUT_OF_MEMORY if the process cannot start another thread now. */
  demandThread(): void;
}

let loaded: NativeAddon | undefined;

/**
 * Loads the native module once: from build/Release if it was compiled here, else the module in
 * prebuilds/ for this platform. The environment variable DIFFQKV_MODULE names another file,
 * which the tests use.
 */
export function addon(): NativeAddon {
  loaded ??= load();
  return loaded;
}

function load(): NativeAddon {
  const find = require('node-gyp-build') as { path(root: string): string };
  let file = process.env.DIFFQKV_MODULE || '';
  try {
    if (file === '') {
      // In a bundle, packageRoot is the folder of another package, which may have modules too.
      if (packageName() !== 'diffqkv') throw new Error('bundled');
      file = find.path(packageRoot);
    }
    return require(file) as NativeAddon;
  } catch (error) {
    const cause = String((error as Error).message.split('\n')[0]);
    throw loadError(file, cause, systemFacts());
  }
}

/** The name in package.json of packageRoot; undefined if there is none. */
function packageName(): unknown {
  try {
    return JSON.parse(readFileSync(join(packageRoot, 'package.json'), 'utf8')).name;
  } catch {
    return undefined;
  }
}

/** What the message of an error of loading depends on. */
export interface SystemFacts {
  /** For example linux-x64. */
  platform: string;
  isBundled: boolean;
  /** The version of glibc, null on a Linux with another C library, undefined on other systems. */
  glibc: string | null | undefined;
}

function systemFacts(): SystemFacts {
  const platform = `${process.platform}-${process.arch}`;
  const isBundled = packageName() !== 'diffqkv';
  if (process.platform !== 'linux') return { platform, isBundled, glibc: undefined };
  const { header } = process.report.getReport() as unknown as {
    header: { glibcVersionRuntime?: string };
  };
  return { platform, isBundled, glibc: header.glibcVersionRuntime ?? null };
}

/**
 * The error of a native module that cannot be loaded, with the cause and the remedy. `file` is '' if
 * no module was found, `cause` the message of the dynamic linker.
 */
export function loadError(
  file: string,
  cause: string,
  { platform, isBundled, glibc }: SystemFacts,
): DiffqkvError {
  const unavailable = (message: string) => new DiffqkvError('ERR_DEVICE_UNAVAILABLE', message);
  const what =
    file === ''
      ? `no native module for ${platform}`
      : `cannot load the native module ${file}: ${cause}`;
  const compile = 'run `npx diffqkv build` (in a clone: npm run build)';
  if (file === '' && isBundled) {
    return unavailable(
      `no native module: the code of diffqkv was bundled, and its files are not in ${packageRoot}. ` +
        'Exclude it from the bundle (esbuild: --external:diffqkv; webpack: externals: ' +
        "{ diffqkv: 'commonjs diffqkv' }) and install diffqkv in node_modules beside the bundle",
    );
  }
  if (/failed to map segment|cannot allocate memory/i.test(cause)) {
    return new DiffqkvError('ERR_OUT_OF_MEMORY', what);
  }
  if (glibc === null) {
    return unavailable(
      `${what}. The C library of this system is not glibc (Alpine Linux has musl), which the prebuilt ` +
        'modules need: use a system with glibc, such as Debian or Ubuntu (Docker: node:22-slim)',
    );
  }
  const [, library, version] = /version [`']([A-Z]+)_([\d.]+)' not found/.exec(cause) ?? [];
  if (library !== undefined) {
    return unavailable(
      `${what}. The system is too old: the module needs ${library} ${version}, and this system has ` +
        `glibc ${glibc}. Use a newer system, such as Debian 12, Ubuntu 22.04 or RHEL 9, or compile a ` +
        `module: ${compile}`,
    );
  }
  return unavailable(file === '' ? `${what}: ${compile}` : what);
}
