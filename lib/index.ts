// Disposable and Symbol.dispose, also if the program's `lib` lacks them.
/// <reference lib="esnext.disposable" preserve="true" />

export type { ChatMessage, ChatTemplateOptions } from './chat';
export { Chat, type ChatOptions, type SendOptions } from './conversation';
export {
  Device,
  type DeviceId,
  type DeviceInfo,
  type DeviceOptions,
  listDevices,
  openDevice,
} from './device';
export type { EmbedOptions } from './embed';
export { DiffqkvError, type ErrorCode } from './errors';
export type { GenerateOptions, PrefillProgress, Prompt } from './generate';
export type { GeneratedToken, Generation, GenerationResult } from './generation';
export type { ResponseFormat } from './grammar/format';
export {
  type Activation,
  type AttentionDecodeArguments,
  type AttentionPrefillArguments,
  kernels,
  type SelectiveV,
} from './kernels';
export type { GeneratedLogprob, TokenLogprob } from './logprobs';
export {
  type DecodeGraphs,
  defaultModelDirectory,
  type KvCacheUsage,
  type LoadOptions,
  Model,
  type ModelConfig,
  type ModelOptions,
  type WeightBytesByPart,
} from './model';
export type { TextOrTokens } from './row_pass';
export type { SamplingOptions } from './sampling';
export type { Score, ScoreOptions } from './score';
export { Session, type SessionOptions } from './session';
export type { LoadSessionOptions } from './session_file';
export type { SpeculativeCounts, SpeculativeOptions } from './speculative';
export { type DType, type Float16ArrayLike, Tensor, type TensorData } from './tensor';
export {
  type DecodeOptions,
  type EncodeChatOptions,
  type EncodeOptions,
  type StreamOptions,
  Tokenizer,
  type TokenStream,
} from './tokenizer';
export type { ToolCall, ToolCallDelta } from './tool_calls';
export type { ToolChoice } from './tools';

declare global {
  // These are empty only in a program that has neither the types of Node nor those of the DOM, with
  // whose declarations they merge.
  interface AbortSignal {}
  interface AbortController {}
}
