// K smaller than V and the reverse, and K cached at a smaller size than it is used at (half K dim):
// whole models compared with float64.

import { Model } from '../../lib/index';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { logitError, modelTolerances } from '../support/compare';
import { errorOf, onEveryDevice, reduced } from '../support/devices';
import { Random } from '../support/numbers';
import { modelLogits } from '../support/reference_model';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const heads: [number, number, number] = [8, 2, 4];
const linear = { kind: 'linear' } as const;
const swiglu = { kind: 'swiglu', intermediate_size: 24 } as const;
const specs: [string, CheckpointSpec][] = [
  ['V wider than K', { heads, headDim: 16, valueHeadDim: 40 }],
  ['V narrower than K, odd', { heads, headDim: 32, valueHeadDim: 7 }],
  ['K 32, V 64', { heads, headDim: 32, valueHeadDim: 64 }],
  ['linear lift after RoPE', { heads, headDim: 32, keyHeadDim: 16, keyLift: { ...linear, position: 'after_rope' } }],
  ['linear lift before RoPE', { heads, headDim: 32, keyHeadDim: 16, keyLift: { ...linear, position: 'before_rope' } }],
  ['SwiGLU lift after RoPE', { heads, headDim: 32, keyHeadDim: 16, keyLift: { ...swiglu, position: 'after_rope' } }],
  ['SwiGLU lift before RoPE', { heads, headDim: 32, keyHeadDim: 16, keyLift: { ...swiglu, position: 'before_rope' } }],
  [
    'a lift to 64 from 32, V of 48',
    { heads, headDim: 64, valueHeadDim: 48, keyHeadDim: 32, keyLift: { ...linear, position: 'after_rope' } },
  ],
];

onEveryDevice((device) => {
  describe.each(specs)('%s', (_, spec) => {
    const types = ['BF16', 'F32'] as const;
    it.each(reduced ? types.slice(0, 1) : types)(
      '%s: computes prefill, decode, K and V in other types, and a fork',
      async (type) => {
        const checkpoint = randomCheckpoint({ ...spec, type });
        const tokens = new Random(5).tokens(150, 128);
        const expected = modelLogits(checkpoint, tokens, { numLogits: tokens.length });
        const directory = directories.make();
        writeCheckpoint(directory, checkpoint);
        const model = await Model.load(directory, { device: device() });
        const session = await model.createSession({ maxKvLen: 200 });
        const tolerance = type === 'F32' ? modelTolerances.f32 : modelTolerances.bf16;
        const check = (logits: Float32Array, at: number) =>
          expect(logitError(logits, expected[at] as Float64Array)).toBeLessThanOrEqual(tolerance);
        check(await session.prefill(tokens.slice(0, 100)), 99);
        for (let i = 100; i < 130; i++) check(await session.decode(tokens[i] as number), i);
        const fork = await session.fork();
        check(await session.decode(tokens[130] as number), 130);
        check(await fork.prefill(tokens.slice(130)), 149);

        const { k, v } = session.kvCacheBytes;
        const { numLayers, numKHeads, numVHeads, headDimK, headDimVo } = model.config;
        const element = type === 'F32' ? 4 : 2;
        const rounded = (bytes: number) => Math.ceil((64 * bytes) / 128) * 128 * numLayers * 3; // pages of 64 tokens
        expect(headDimK).toBe(spec.keyHeadDim ?? spec.headDim);
        expect({ k, v }).toEqual({
          k: rounded(numKHeads * headDimK * element),
          v: rounded(numVHeads * headDimVo * element),
        });

        // Matrices as they are stored, but gate and up of augmented Q multiplied by Q; norms in f32, and two
        // tables of RoPE frequencies in f64.
        const parts = { embedding: 0, output: 0, attention: 0, augmentedQ: 0, ffn: 0, other: 0 };
        for (const [name, { shape, data }] of checkpoint.tensors) {
          if (/embed_tokens/.test(name)) parts.embedding += data.length * element;
          else if (/lm_head/.test(name)) parts.output += data.length * element;
          else if (shape.length === 1) parts.other += data.length * 4;
          else if (/q_proj/.test(name)) continue;
          else if (/q_(gate|up)_proj/.test(name))
            parts.augmentedQ += (shape[0] as number) * model.config.hiddenSize * element;
          else if (/q_down_proj/.test(name)) parts.augmentedQ += data.length * element;
          else parts[/mlp/.test(name) ? 'ffn' : 'attention'] += data.length * element;
        }
        parts.other += 8 * ((spec.headDim as number) / 2 + headDimK / 2);
        expect(model.weightBytesByPart).toEqual(parts);
        model.dispose();
      },
    );
  });
});

describe('config.json', () => {
  const lift = { kind: 'linear', position: 'after_rope' } as const;
  it.each([
    [{ keyHeadDim: 8 }, /key_lift.*missing/],
    [{ keyHeadDim: 7, keyLift: lift }, /key_head_dim is 7/],
    [{ keyHeadDim: 64, keyLift: lift }, /key_head_dim is 64/],
    [{ keyHeadDim: 8, keyLift: { ...lift, kind: 'cubic' as 'linear' } }, /key_lift.kind is 'cubic'/],
    [{ keyHeadDim: 8, keyLift: { kind: 'linear' } as typeof lift }, /key_lift.position is missing/],
    [{ keyHeadDim: 8, keyLift: { ...lift, kind: 'swiglu' as const } }, /key_lift.intermediate_size is missing/],
    [{ valueHeadDim: 0 }, /value_head_dim is 0/],
  ] as [CheckpointSpec, RegExp][])('rejects %j', async (spec, message) => {
    const { config } = randomCheckpoint({ heads, headDim: 16, config: specConfig(spec) });
    const error = await errorOf(() => Model.random(config, { device: 'cpu' }));
    expect(error.code).toBe('ERR_INVALID_ARGUMENT');
    expect(error.message).toMatch(message);
  });
});

function specConfig(spec: CheckpointSpec): Record<string, unknown> {
  return { value_head_dim: spec.valueHeadDim, key_head_dim: spec.keyHeadDim, key_lift: spec.keyLift };
}
