/** Restricts which tokens a generation draws. */
export interface TokenConstraint {
  /**
   * [ceil(vocabSize / 32)]. Bit t % 32 of word t / 32 says whether token t may be drawn next;
   * undefined: all may. It is read before each draw and must not change before `accept`.
   */
  readonly allowed: Uint32Array | undefined;
  /** Says that `token` was drawn. The generation waits for a promise that it returns. */
  accept(token: number): Promise<void> | void;
}
