// The typed contract with csrc/addon, all of it, and the search for the .node file.
//
// Every method that takes time returns a promise and runs on the device's executor thread, first in, first out. Errors
// are thrown, or reject, as an Error with a `code` of lib/errors.ts. Arrays given in are copied before the call returns;
// arrays to be filled are written on the JS thread just before the promise resolves.

import { DiffqkvError } from './errors';
import { packageRoot } from './paths';

export type NativeDType = 'f32' | 'f16' | 'bf16' | 'i32' | 'i8' | 'f8e4m3';

export interface NativeDeviceInfo {
  id: string;
  kind: 'cpu' | 'cuda' | 'emulated';
  name: string;
  usable: boolean;
  reason?: string;
  totalMemory: number;
  computeCapability?: string;
  /** What `diffqkv info` prints besides, e.g. { simd: 'avx512_bf16+amx', linear: 'oneDNN 2.6.3', threads: '2' }. */
  details: Record<string, string>;
}

/** Ends a running call early: it rejects with code ABORT_ERR. */
export interface NativeCancel {
  cancel(): void;
}

/** csrc/backend/emulated_counters.h says what they are. */
export interface NativeCounters {
  bytesRead: number;
  bytesWritten: number;
  sectors: number;
  bankConflicts: number;
  mmaOps: number;
}

export interface NativeTensor {
  readonly byteLength: number;
  /** Fills `out` (Float32Array: converted; else the raw element type, same length). */
  readInto(out: ArrayBufferView): Promise<void>;
  write(data: ArrayBufferView): Promise<void>;
  dispose(): void;
}

export interface NativeDevice {
  readonly info: NativeDeviceInfo;
  /** `data` undefined: zeros; null: left as the memory is, for what is written whole before it is read. */
  tensor(dtype: NativeDType, shape: number[], data?: ArrayBufferView | null): NativeTensor;
  synchronize(): Promise<void>;
  /** Takes a time stamp in the device's queue; resolves to a handle for elapsedMs. */
  recordEvent(): object;
  elapsedMs(start: object, stop: object): Promise<number>;
  /** null before the first reset, and on every device but `emulated`. */
  counters(): NativeCounters | null;
  /** Throws ERR_DEVICE_UNAVAILABLE on every device but `emulated`. */
  resetCounters(): void;
  dispose(): void;

  // Operators. Shapes, types and head counts are checked here, before anything is queued (thrown synchronously).
  attentionPrefill(
    q: NativeTensor,
    k: NativeTensor,
    v: NativeTensor,
    kScales: NativeTensor | undefined,
    vScales: NativeTensor | undefined,
    out: NativeTensor,
    lse: NativeTensor | undefined,
    kvLens: NativeTensor | undefined,
    causal: boolean,
    smScale: number | undefined,
  ): Promise<void>;
  attentionDecode(
    q: NativeTensor,
    k: NativeTensor,
    v: NativeTensor,
    kScales: NativeTensor | undefined,
    vScales: NativeTensor | undefined,
    out: NativeTensor,
    lse: NativeTensor | undefined,
    kvLens: NativeTensor | undefined,
    smScale: number | undefined,
    numSplits: number,
    selectiveTopK: number,
    renormalize: boolean,
  ): Promise<void>;
  quantize(x: NativeTensor, out: NativeTensor, scales: NativeTensor): Promise<void>;
  augmentedQ(
    x: NativeTensor,
    gate: NativeTensor,
    up: NativeTensor,
    down: NativeTensor,
    out: NativeTensor,
  ): Promise<void>;
  matmul(x: NativeTensor, weight: NativeTensor, out: NativeTensor): Promise<void>;
  rmsNorm(
    x: NativeTensor,
    weight: NativeTensor,
    out: NativeTensor,
    residual: NativeTensor | undefined,
    eps: number,
  ): Promise<void>;
  rope(x: NativeTensor, positions: NativeTensor, out: NativeTensor, theta: number): Promise<void>;
  siluMul(gate: NativeTensor, up: NativeTensor, out: NativeTensor): Promise<void>;
  embed(table: NativeTensor, tokens: NativeTensor, out: NativeTensor): Promise<void>;

  loadModel(
    directory: string,
    options: NativeModelOptions,
    onProgress: ((loadedBytes: number, totalBytes: number) => void) | undefined,
    cancel: NativeCancel | undefined,
  ): Promise<NativeModel>;
  randomModel(configJson: string, options: NativeModelOptions, seed: bigint): Promise<NativeModel>;
}

export interface NativeModelOptions {
  dtype?: NativeDType;
  kvCacheBytes?: number;
  prefixCacheBytes?: number;
}

export interface NativeModel {
  /** The config in this project's words (camelCase), as csrc/model/config read it; plus eosTokenIds, bosTokenId. */
  readonly config: NativeModelConfig;
  readonly dtype: NativeDType;
  readonly numParameters: number;
  readonly weightBytes: number;
  readonly kvCache: NativeKvCache;
  createSession(options: NativeSessionOptions): Promise<NativeSession>;
  /** One step of continuous batching; results in the order of the turns. Each turn's session is another one, of this model. */
  step(items: NativeBatchItem[]): Promise<NativeBatchResult[]>;
  dispose(): void;
}

export interface NativeKvCache {
  pageTokens: number;
  pages: number;
  prefixPages: number;
  bytes: number;
  maxBytes?: number;
}

export interface NativeBatchItem {
  session: NativeSession;
  /** Appended to the session: one, a step of decoding; more, a prompt, of which one chunk is done in a step. */
  tokens: Int32Array;
  /** None: no token is drawn. */
  sampling: NativeSampling | undefined;
  /** Counts the tokens drawn by one generate call, from 0. */
  draw: number;
  cancel: NativeCancel | undefined;
}

export interface NativeBatchResult {
  /** How many of the tokens are in the session now. */
  consumed: number;
  /** The token drawn, where all are and one was asked for. */
  token?: number;
  /** The session is as before the step. */
  error?: unknown;
}

export interface NativeModelConfig {
  /** Which family of checkpoints it is. */
  architecture: 'sigma' | 'llama';
  /** Elements of a token's row between layers. */
  hiddenSize: number;
  /** Of the FFN. */
  intermediateSize: number;
  /** Of the MLP that augments Q (arXiv 2501.13629, section 2); 0 where there is none. */
  augQSize: number;
  /** Layers. */
  numLayers: number;
  /** Tokens are integers from 0 to vocabSize - 1. */
  vocabSize: number;
  /** Query heads: a multiple of numKHeads and of numVHeads. */
  numQHeads: number;
  /** K heads; Q head i reads K head floor(i numKHeads / numQHeads). */
  numKHeads: number;
  /** V heads; Q head i reads V head floor(i numVHeads / numQHeads). */
  numVHeads: number;
  /** Elements of a head of Q, and of K as attention reads it. */
  headDimQk: number;
  /** Elements of a head of V, and of attention's output. */
  headDimVo: number;
  /** Of K as it is cached: headDimQk, but where K is lifted (keyLift). */
  headDimK: number;
  /** 'linear after RoPE', 'swiglu before RoPE', ...: half K dim; absent where K is cached as attention reads it. */
  keyLift?: string;
  /** The base of RoPE's angles: pair d turns by theta^(-2d/headDimQk) radians a position. */
  ropeTheta: number;
  /** Added to the mean square in RMSNorm. */
  rmsNormEps: number;
  /** The context: the most tokens of a sequence. */
  maxPositionEmbeddings: number;
  /** Whether the embedding is the last layer too. */
  tieWordEmbeddings: boolean;
  /** The token that begins a text, where config.json names one. */
  bosTokenId?: number;
  /** The tokens that end a text; empty where config.json names none. */
  eosTokenIds: number[];
}

export interface NativeSessionOptions {
  maxKvLen?: number;
  kType?: NativeDType;
  vType?: NativeDType;
  selectiveTopK?: number;
  renormalize?: boolean;
}

export interface NativeSampling {
  temperature: number;
  topK: number; // 0: all
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
  /** Appends tokens; fills `logits` ([vocabSize]) with those of the last one. */
  forward(
    tokens: Int32Array,
    logits: Float32Array,
    cancel: NativeCancel | undefined,
  ): Promise<void>;
  truncate(kvLen: number): Promise<void>;
  fork(): Promise<NativeSession>;
  dispose(): void;
}

export interface NativeAddon {
  /** 'onednn' or 'plain', and whether CUDA was built in. */
  readonly build: { linear: string; cuda: boolean; version: string };
  listDevices(): NativeDeviceInfo[];
  /** Throws ERR_DEVICE_UNAVAILABLE. */
  openDevice(id: string): Promise<NativeDevice>;
  createCancel(): NativeCancel;
  /** Throws ERR_OUT_OF_MEMORY where the process could not start one more thread now. */
  demandThread(): void;
  /** In the tests' module alone: csrc/backend/emulated_faults.h. */
  emulatedFault?(call: string, first: number, times: number, status: number): number;
}

let loaded: NativeAddon | undefined;

/**
 * The native module: build/Release, where it was compiled here, else the one of prebuilds/ for this platform.
 * DIFFQKV_MODULE in the environment names another file, as the tests do to load the one that has the emulated device.
 */
export function addon(): NativeAddon {
  if (loaded === undefined) {
    const load = require('node-gyp-build') as ((root: string) => NativeAddon) & {
      path(root: string): string;
    };
    let file = '';
    // OpenMP's threads wait for each other by spinning, by default for some 16 ms: on a busy machine that takes the core
    // from the thread they wait for. 3,000 turns cost nothing on an idle one, and made products of a busy one 2 to 7 times
    // faster. The library reads this once, as it loads; afterwards it goes, so that child processes do not inherit it.
    const { GOMP_SPINCOUNT, OMP_WAIT_POLICY } = process.env;
    const limitSpinning = GOMP_SPINCOUNT === undefined && OMP_WAIT_POLICY === undefined;
    if (limitSpinning) process.env.GOMP_SPINCOUNT = '3000';
    try {
      const named = process.env.DIFFQKV_MODULE;
      file = named || load.path(packageRoot);
      loaded = named ? (require(named) as NativeAddon) : load(packageRoot);
    } catch (error) {
      const cause = (error as Error).message.split('\n')[0];
      throw new DiffqkvError(
        /failed to map segment|cannot allocate memory/i.test(String(cause))
          ? 'ERR_OUT_OF_MEMORY'
          : 'ERR_DEVICE_UNAVAILABLE',
        file === ''
          ? `the native module is not there for ${process.platform}-${process.arch}: run \`npx diffqkv build\` (in a checkout: npm run build)`
          : `the native module ${file} does not load: ${cause}`,
      );
    } finally {
      if (limitSpinning) delete process.env.GOMP_SPINCOUNT;
    }
  }
  return loaded;
}
