// Runs one attention case on a device and compares the result with the reference.

import { type Device, kernels, type Tensor } from '../../lib/index';
import { coarsest, expectClose, firstBitDifference, tolerances } from '../support/compare';
import { withTensors } from '../support/devices';
import type { KvType } from '../support/numbers';
import { attention, type QuantizedRows, unscaledRows } from '../support/reference';
import type { AttentionCase } from './attention_cases';
import { attentionInput } from './attention_cases';

export async function checkAttention(device: Device, c: AttentionCase, operator: 'prefill' | 'decode'): Promise<void> {
  const input = attentionInput(c);
  const { batchSize, qLen, kvLen } = c;
  const [numQHeads, numKHeads, numVHeads] = c.heads;
  const [headDimQk, headDimVo] = c.dims;
  const [qType, kType, vType] = c.types;
  await withTensors(device, async (tensors) => {
    const perQuery = operator === 'prefill' ? [batchSize, qLen] : [batchSize];
    const outShape = [...perQuery, numQHeads, headDimVo];
    // Memory that is probably adjacent to the output. A kernel must not write to it.
    const guards = [tensors.out(qType, outShape)];
    const out = tensors.out(qType, outShape);
    guards.push(tensors.out(qType, outShape));
    const lse = tensors.out('f32', operator === 'prefill' ? [batchSize, numQHeads, qLen] : [batchSize, numQHeads]);
    const q = tensors.make(qType, [...perQuery, numQHeads, headDimQk], input.q);
    const cache = (
      type: KvType,
      shape: number[],
      x: Float32Array,
      rows?: QuantizedRows,
    ): [Tensor, Tensor | undefined] => [
      tensors.keep(device.tensor(type, shape, rows?.values ?? x)),
      rows && tensors.make('bf16', shape.slice(0, 3), rows.scales),
    ];
    const [k, kScales] = cache(kType, [batchSize, kvLen, numKHeads, headDimQk], input.k, input.kRows);
    const [v, vScales] = cache(vType, [batchSize, kvLen, numVHeads, headDimVo], input.v, input.vRows);
    const kvLens = c.kvLens && tensors.make('i32', [batchSize], Int32Array.from(c.kvLens));
    const { smScale } = input;
    const { numSplits, selectiveV, window, softcap } = c;
    const args = { q, k, v, kScales, vScales, smScale, softcap, window, kvLens, out, lse };
    const result =
      operator === 'prefill'
        ? await kernels.attentionPrefill({ ...args, causal: c.causal })
        : await kernels.attentionDecode({ ...args, numSplits, selectiveV });
    expect(result).toBe(out);

    const expected = attention(input);
    const actual = await out.read();
    const type = coarsest(...c.types);
    if (c.inputs === 'ones' || c.inputs === 'onesHuge') {
      // The products of weights and scales of V are rounded, so their sum may differ from that of
      // the weights.
      const exact = input.vRows === undefined && (!c.selectiveV || c.selectiveV.renormalize === true);
      expectOnes(actual, expected.out, exact, type);
    } else {
      expectClose(actual, expected.out, tolerances[type], headDimVo);
    }
    expectClose(await lse.read(), expected.lse, tolerances.lse, 1);
    for (const [tensor, data] of [
      [q, input.q],
      [k, input.kRows ? unscaledRows(input.kRows) : input.k],
      [v, input.vRows ? unscaledRows(input.vRows) : input.v],
    ] as const) {
      expect(firstBitDifference(await tensor.read(), data)).toBe(-1);
    }
    for (const guard of guards) expect((await guard.read()).every(Number.isNaN)).toBe(true);
  });
}

/** If V = 1, weights that sum to one must produce exactly 1. */
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
