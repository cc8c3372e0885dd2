export type { ChatMessage, ChatTemplateOptions } from './chat';
export {
  Device,
  type DeviceId,
  type DeviceInfo,
  type DeviceOptions,
  listDevices,
  openDevice,
} from './device';
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
export type { SamplingOptions } from './sampling';
export { Session, type SessionOptions } from './session';
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
