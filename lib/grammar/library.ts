// llguidance (https://github.com/guidance-ai/llguidance), the grammar library, as WebAssembly of the
// package `transformers-llguidance`. That package's own class reads the tokens of byte-level
// tokenizers wrongly and keeps one copy of the vocabulary for each grammar. Its WebAssembly module
// also exports the C interface of llguidance (`llguidance.h`), which has neither fault. The package
// does not export that module, so it is caught as the package creates it. All offsets below are those
// of the structs of llguidance.h on a 32-bit machine, and package.json pins the version.
//
// Only the thread of lib/grammar/thread.ts imports this file, because it patches WebAssembly.

import type { GrammarSource } from './format';

type Pointer = number;

/** The part of llguidance.h that is used, and the allocator of the module. */
interface Exports {
  memory: { buffer: ArrayBuffer };
  __wbindgen_malloc(bytes: number, alignment: number): Pointer;
  __wbindgen_free(pointer: Pointer, bytes: number, alignment: number): void;
  llg_new_tokenizer(init: Pointer, error: Pointer, errorBytes: number): Pointer;
  llg_constraint_init_set_defaults(init: Pointer, tokenizer: Pointer): void;
  llg_new_matcher(init: Pointer, kind: Pointer, text: Pointer): Pointer;
  llg_clone_matcher(matcher: Pointer): Pointer;
  llg_free_matcher(matcher: Pointer): void;
  llg_matcher_get_error(matcher: Pointer): Pointer;
  llg_matcher_compute_mask_into(matcher: Pointer, mask: Pointer, bytes: number): number;
  llg_matcher_consume_token(matcher: Pointer, token: number): number;
  llg_matcher_is_stopped(matcher: Pointer): number;
}

interface WebAssemblyModule {
  instantiate(...args: unknown[]): Promise<{ instance: { exports: Exports } }>;
}

/** A grammar, or a text, that the library rejects. Other errors leave the library unusable. */
export class GrammarError extends Error {}

const TOKENIZER_INIT = { bytes: 40, tokEos: 4, tokenLens: 8, tokenBytes: 12, greedy: 28 };
const CONSTRAINT_INIT = { bytes: 96, logStderrLevel: 8, maxLexerStates: 44, verboseErrors: 53 };
// A state has 1 to 2 KB. The library's own limit is 250,000.
const MAX_LEXER_STATES = 50_000;
const MESSAGE_BYTES = 1024;
// Characters of a line in an error message.
const MAX_LINE = 200;

/** Loads the WebAssembly module. */
async function loadModule(): Promise<Exports> {
  const { WebAssembly } = globalThis as unknown as { WebAssembly: WebAssemblyModule };
  const { instantiate } = WebAssembly;
  let exports: Exports | undefined;
  WebAssembly.instantiate = async (...args) => {
    const result = await instantiate(...args);
    exports = result.instance.exports;
    return result;
  };
  try {
    const { GuidanceParser } = await import('transformers-llguidance');
    // The module is loaded with the first parser.
    const vocabulary = { vocab: { a: 0, b: 1 }, eos_token_id: 1 };
    await GuidanceParser.create({ type: 'regex', pattern: 'a' }, vocabulary);
  } finally {
    WebAssembly.instantiate = instantiate;
  }
  if (exports?.llg_new_matcher === undefined) {
    throw new Error('transformers-llguidance has another form: install version 0.2.1');
  }
  return exports;
}

/** The library with one vocabulary. Token `endToken`, the last one, ends a text. */
export class GrammarLibrary {
  readonly #exports: Exports;
  readonly #tokenizer: Pointer;
  readonly #mask: Pointer;
  readonly #maskWords: number;
  readonly endToken: number;

  private constructor(exports: Exports, lengths: Uint32Array, bytes: Uint8Array) {
    this.#exports = exports;
    this.endToken = lengths.length - 1;
    this.#tokenizer = this.#createTokenizer(lengths, bytes);
    this.#maskWords = Math.ceil(lengths.length / 32);
    this.#mask = exports.__wbindgen_malloc(4 * this.#maskWords, 4) >>> 0;
  }

  /**
   * Loads the library. `lengths` has the number of bytes of each token, 0 for one that no text has,
   * and `bytes` has all of them. Takes 2 s for 128,000 tokens.
   */
  static async load(lengths: Uint32Array, bytes: Uint8Array): Promise<GrammarLibrary> {
    // The name of a token that ends the text begins with 0xff.
    const end = Buffer.from('\xff<end>', 'latin1');
    const allLengths = Uint32Array.from([...lengths, end.length]);
    return new GrammarLibrary(await loadModule(), allLengths, Buffer.concat([bytes, end]));
  }

  /** Compiles a grammar. Throws GrammarError. The matcher must be freed. */
  compile({ kind, text }: GrammarSource): Matcher {
    const library = this.#exports;
    const init = this.#allocate(CONSTRAINT_INIT.bytes);
    library.llg_constraint_init_set_defaults(init, this.#tokenizer);
    const fields = new DataView(library.memory.buffer, init, CONSTRAINT_INIT.bytes);
    fields.setUint32(CONSTRAINT_INIT.logStderrLevel, 0, true);
    fields.setUint32(CONSTRAINT_INIT.maxLexerStates, MAX_LEXER_STATES, true);
    fields.setUint8(CONSTRAINT_INIT.verboseErrors, 0);
    const [kindText, grammar] = [this.#string(kind), this.#string(text)];
    const pointer = library.llg_new_matcher(init, kindText.pointer, grammar.pointer) >>> 0;
    library.__wbindgen_free(init, CONSTRAINT_INIT.bytes, 8);
    for (const { pointer, bytes } of [kindText, grammar])
      library.__wbindgen_free(pointer, bytes, 1);
    const matcher = this.#matcher(pointer);
    try {
      matcher.check();
    } catch (error) {
      matcher.free();
      throw error;
    }
    return matcher;
  }

  #matcher(pointer: Pointer): Matcher {
    const library = this.#exports;
    const check = (status = 0): void => {
      const error = library.llg_matcher_get_error(pointer) >>> 0;
      if (error === 0 && status === 0) return;
      const text = error === 0 ? 'it failed' : this.#readString(error);
      throw new GrammarError(shorten(text.split('<state>', 1)[0] as string));
    };
    return {
      check,
      clone: () => this.#matcher(library.llg_clone_matcher(pointer) >>> 0),
      free: () => library.llg_free_matcher(pointer),
      accept: (token) => check(library.llg_matcher_consume_token(pointer, token)),
      allowed: () => {
        const bytes = 4 * this.#maskWords;
        check(library.llg_matcher_compute_mask_into(pointer, this.#mask, bytes));
        return new Uint32Array(library.memory.buffer, this.#mask, this.#maskWords).slice();
      },
      get isFinished() {
        return library.llg_matcher_is_stopped(pointer) !== 0;
      },
    };
  }

  #createTokenizer(lengths: Uint32Array, bytes: Uint8Array): Pointer {
    const library = this.#exports;
    const lengthsPointer = library.__wbindgen_malloc(lengths.byteLength, 4) >>> 0;
    const bytesPointer = library.__wbindgen_malloc(bytes.length, 1) >>> 0;
    const error = this.#allocate(MESSAGE_BYTES);
    const init = this.#allocate(TOKENIZER_INIT.bytes);
    const { buffer } = library.memory;
    new Uint32Array(buffer, lengthsPointer, lengths.length).set(lengths);
    new Uint8Array(buffer, bytesPointer, bytes.length).set(bytes);
    const fields = new DataView(buffer, init, TOKENIZER_INIT.bytes);
    fields.setUint32(0, lengths.length, true);
    fields.setUint32(TOKENIZER_INIT.tokEos, this.endToken, true);
    fields.setUint32(TOKENIZER_INIT.tokenLens, lengthsPointer, true);
    fields.setUint32(TOKENIZER_INIT.tokenBytes, bytesPointer, true);
    // Encoding is used only to propose tokens, which nothing here asks for.
    fields.setUint8(TOKENIZER_INIT.greedy, 1);
    const tokenizer = library.llg_new_tokenizer(init, error, MESSAGE_BYTES) >>> 0;
    if (tokenizer === 0) throw new Error(this.#readString(error));
    library.__wbindgen_free(lengthsPointer, lengths.byteLength, 4);
    library.__wbindgen_free(bytesPointer, bytes.length, 1);
    library.__wbindgen_free(init, TOKENIZER_INIT.bytes, 8);
    library.__wbindgen_free(error, MESSAGE_BYTES, 8);
    return tokenizer;
  }

  /** Zeroed memory, aligned to 8 bytes. */
  #allocate(bytes: number): Pointer {
    const pointer = this.#exports.__wbindgen_malloc(bytes, 8) >>> 0;
    new Uint8Array(this.#exports.memory.buffer, pointer, bytes).fill(0);
    return pointer;
  }

  #string(text: string): { pointer: Pointer; bytes: number } {
    const utf8 = Buffer.from(`${text}\0`);
    const pointer = this.#exports.__wbindgen_malloc(utf8.length, 1) >>> 0;
    new Uint8Array(this.#exports.memory.buffer, pointer, utf8.length).set(utf8);
    return { pointer, bytes: utf8.length };
  }

  #readString(pointer: Pointer): string {
    const memory = Buffer.from(this.#exports.memory.buffer, pointer);
    return memory.toString('utf8', 0, memory.indexOf(0));
  }
}

/** A message without most of a long grammar that it quotes. It has few lines. */
function shorten(message: string): string {
  const half = MAX_LINE / 2;
  const cut = (line: string) =>
    line.length > MAX_LINE ? `${line.slice(0, half)} ... ${line.slice(-half)}` : line;
  return message.trimEnd().split('\n').map(cut).join('\n');
}

/** How far a text has come in a grammar. Methods throw GrammarError. */
export interface Matcher {
  check(): void;
  clone(): Matcher;
  free(): void;
  accept(token: number): void;
  /** Bit t % 32 of word t / 32: whether token t may follow. */
  allowed(): Uint32Array;
  /** Whether only the end may follow. */
  readonly isFinished: boolean;
}
