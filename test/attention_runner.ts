// Runs one attention case on a device and holds the result against the reference.

import { type Device, kernels } from '../lib/index';
import type { AttentionCase } from './cases';
import { attentionInput } from './cases';
import { coarsest, expectClose, firstBitDifference, tolerances } from './compare';
import { withTensors } from './devices';
import { attention } from './reference';

export async function checkAttention(device: Device, c: AttentionCase, operator: 'prefill' | 'decode'): Promise<void> {
  const input = attentionInput(c);
  const { batchSize, qLen, kvLen } = c;
  const [numQHeads, numKHeads, numVHeads] = c.heads;
  const [headDimQk, headDimVo] = c.dims;
  const [qType, kType, vType] = c.types;
  await withTensors(device, async (tensors) => {
    const perQuery = operator === 'prefill' ? [batchSize, qLen] : [batchSize];
    const outShape = [...perQuery, numQHeads, headDimVo];
    // Neighbours of the output, most likely beside it in memory too: a kernel must leave them as they are.
    const guards = [tensors.out(qType, outShape)];
    const out = tensors.out(qType, outShape);
    guards.push(tensors.out(qType, outShape));
    const lse = tensors.out('f32', operator === 'prefill' ? [batchSize, numQHeads, qLen] : [batchSize, numQHeads]);
    const q = tensors.make(qType, [...perQuery, numQHeads, headDimQk], input.q);
    const k = tensors.make(kType, [batchSize, kvLen, numKHeads, headDimQk], input.k);
    const v = tensors.make(vType, [batchSize, kvLen, numVHeads, headDimVo], input.v);
    const kvLens = c.kvLens && tensors.make('i32', [batchSize], Int32Array.from(c.kvLens));
    const { smScale } = input;
    const result =
      operator === 'prefill'
        ? await kernels.attentionPrefill({ q, k, v, causal: c.causal, smScale, kvLens, out, lse })
        : await kernels.attentionDecode({
            q,
            k,
            v,
            smScale,
            kvLens,
            numSplits: c.numSplits,
            selectiveV: c.selectiveV,
            out,
            lse,
          });
    expect(result).toBe(out);

    const expected = attention(input);
    const actual = await out.read();
    const type = coarsest(...c.types);
    if (c.inputs === 'ones' || c.inputs === 'onesHuge') {
      expectOnes(actual, expected.out, !c.selectiveV || c.selectiveV.renormalize === true, type);
    } else {
      expectClose(actual, expected.out, tolerances[type], headDimVo);
    }
    expectClose(await lse.read(), expected.lse, tolerances.lse, 1);
    for (const [tensor, data] of [
      [q, input.q],
      [k, input.k],
      [v, input.v],
    ] as const) {
      expect(firstBitDifference(await tensor.read(), data)).toBe(-1);
    }
    for (const guard of guards) expect((await guard.read()).every(Number.isNaN)).toBe(true);
  });
}

/** With V = 1 weights that sum to one give exactly 1. */
function expectOnes(actual: Float32Array, expected: Float64Array, exact: boolean, type: 'f32' | 'f16' | 'bf16'): void {
  if (exact)
    expectClose(
      actual,
      expected.map((x) => Math.round(x)),
      tolerances.exact,
      1,
    );
  else expectClose(actual, expected, tolerances[type], 1);
}
