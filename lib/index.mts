// The same for ES modules: one implementation, so that objects of both kinds of import are the same.
export {
  defaultModelDirectory,
  Device,
  DiffqkvError,
  kernels,
  listDevices,
  Model,
  openDevice,
  Session,
  Tensor,
  Tokenizer,
} from './index.js';
export type * from './index.js';
