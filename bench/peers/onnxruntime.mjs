// GroupQueryAttention of onnxruntime-node, in its own process. See serve.mjs.
import { readFileSync } from 'node:fs';

import { serve } from './serve.mjs';

let ort = null;
let session = null;
let feeds = [];
let turn = 0;

const ARRAYS = { float32: Float32Array, float16: Uint16Array, bfloat16: Uint16Array };

/** The typed array of a file. */
function read(file, type) {
  const { buffer, byteOffset, byteLength } = readFileSync(file);
  return new ARRAYS[type](buffer.slice(byteOffset, byteOffset + byteLength));
}

/** The cache is an input and an output. If both are the same memory, the operator appends in place. */
async function run({ inputs, outputs }) {
  return await session.run(inputs, outputs);
}

await serve({
  async open({ threads, model }) {
    ({ default: ort } = await import('onnxruntime-node'));
    session = await ort.InferenceSession.create(model, {
      executionProviders: ['cpu'],
      intraOpNumThreads: threads,
      interOpNumThreads: 1,
      graphOptimizationLevel: 'all',
    });
    return { version: ort.env.versions.node ?? ort.env.versions.common };
  },
  /** `shared`: past and present are the same memory. Calls alternate between `copies` caches. */
  async load({ folder, type, shape, copies, shared }) {
    const { numQHeads, numKAndVHeads, dim, kvLen, pastLen } = shape;
    const row = (name, heads) => new ort.Tensor(type, read(`${folder}/${name}`, type), [1, 1, heads * dim]);
    const cacheShape = (length) => [1, numKAndVHeads, length, dim];
    const [query, key, value] = [row('query', numQHeads), row('key', numKAndVHeads), row('value', numKAndVHeads)];
    const seqlens = new ort.Tensor('int32', Int32Array.of(kvLen - 1), [1]);
    const total = new ort.Tensor('int32', Int32Array.of(kvLen), []);
    const output = new ort.Tensor(type, new ARRAYS[type](numQHeads * dim), [1, 1, numQHeads * dim]);
    const pasts = ['past_key', 'past_value'].map((name) => read(`${folder}/${name}`, type));
    feeds = Array.from({ length: copies }, () => {
      const [pastKey, pastValue] = pasts.map((data) => new ort.Tensor(type, data.slice(), cacheShape(pastLen)));
      // Results have preallocated memory too, or each call would allocate new arrays. It is filled, or the system would
      // allocate its pages during the timed calls.
      const present = (past) => {
        if (shared) return past;
        return new ort.Tensor(type, new ARRAYS[type](numKAndVHeads * kvLen * dim).fill(1), cacheShape(kvLen));
      };
      return {
        inputs: {
          query,
          key,
          value,
          past_key: pastKey,
          past_value: pastValue,
          seqlens_k: seqlens,
          total_sequence_length: total,
        },
        outputs: { output, present_key: present(pastKey), present_value: present(pastValue) },
      };
    });
    for (const feed of feeds) await run(feed); // the first calls on each cache are not timed
  },
  async output() {
    const { output } = await run(feeds[0]);
    return { values: Array.from(output.data) };
  },
  /** Milliseconds of each of `calls` consecutive calls. */
  async time({ calls }) {
    const ms = [];
    for (let i = 0; i < calls; ++i) {
      turn = (turn + 1) % feeds.length;
      const since = performance.now();
      await run(feeds[turn]);
      ms.push(performance.now() - since);
    }
    return { ms };
  },
});
