/**
 * The key of the accessor by which the files of lib/ reach the native object behind a Device, a
 * Tensor or a Session. index.ts does not export it, and stripInternal removes the accessors from
 * the declarations.
 * @internal
 */
export const native: unique symbol = Symbol('diffqkv.native');

/**
 * The key of the accessor to the CallOrder of a Session.
 * @internal
 */
export const callOrder: unique symbol = Symbol('diffqkv.callOrder');

/**
 * The key of the accessor to the Scheduler of a Model.
 * @internal
 */
export const scheduler: unique symbol = Symbol('diffqkv.scheduler');

/**
 * The key of the method that ends the process of a Tokenizer when its model is disposed of. A later
 * `encode` starts it again.
 * @internal
 */
export const endProcess: unique symbol = Symbol('diffqkv.endProcess');

/**
 * The key of the accessor to the GrammarCompiler of a Tokenizer.
 * @internal
 */
export const grammars: unique symbol = Symbol('diffqkv.grammars');

/**
 * The key of the accessor to the source of the chat template of a Tokenizer for conversations with
 * tools, or null.
 * @internal
 */
export const toolTemplate: unique symbol = Symbol('diffqkv.toolTemplate');
