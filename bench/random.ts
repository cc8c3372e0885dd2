// Random tensor contents, fast enough for gigabytes.

/** bf16 numbers with mean 0 and variance 1 (each the sum of four uniform numbers), as raw bits. Depends only on the seed. */
export function randomBf16(count: number, seed: number): Uint16Array {
  const out = new Uint16Array(count);
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  let state = seed | 1;
  for (let i = 0; i < count; ++i) {
    // xorshift32: four bytes of one draw are the four uniform numbers
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    const sum = (state & 255) + ((state >>> 8) & 255) + ((state >>> 16) & 255) + (state >>> 24);
    float[0] = (sum - 510) / 147.8; // variance of one byte: (256^2 - 1) / 12
    out[i] = (bits[0] as number) >>> 16;
  }
  return out;
}
