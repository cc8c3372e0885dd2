// The exports for ES modules. Both kinds of import share one implementation, so that their objects
// are the same.
export {
  Chat,
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
