// Suite mla: decode of a model with multi-head latent attention, which caches one latent row per
// token, against a model of the same sizes that caches the expanded K and V heads.
import { Model } from '../../lib/index';
import { figure } from '../figure';
import { interleaveFor } from '../measure';
import { lengthName } from '../shapes';
import { promptTokens, timeDecode } from '../steps';
import { type Bench, byKind, type Cell, type Suite } from '../suite';

// MiniCPM3-4B, with fewer layers and tokens: 4 of its 62 layers, so that the output layer has its share of the bytes.
const COMMON = {
  hidden_size: 2560,
  intermediate_size: 6400,
  num_hidden_layers: 4,
  num_attention_heads: 40,
  vocab_size: 4736,
  max_position_embeddings: 32768,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
};
const TRIAL = { hidden_size: 64, intermediate_size: 96, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 64 };
const LATENT = { q_lora_rank: 768, kv_lora_rank: 256, qk_nope_head_dim: 64, qk_rope_head_dim: 32, v_head_dim: 64 };
const STEPS = 8;

type Sizes = typeof COMMON;

const configs = (sizes: Sizes) => ({
  latent: { ...sizes, ...LATENT, model_type: 'minicpm3', tie_word_embeddings: true },
  expanded: {
    ...sizes,
    model_type: 'sigma',
    aug_q_dim: 0,
    num_key_heads: sizes.num_attention_heads,
    num_value_heads: sizes.num_attention_heads,
    head_dim: LATENT.qk_nope_head_dim + LATENT.qk_rope_head_dim,
    value_head_dim: LATENT.v_head_dim,
    tie_word_embeddings: true,
  },
});

function cell(bench: Bench, sizes: Sizes, kvLen: number): Cell {
  const name = `decode after ${lengthName(kvLen)}`;
  return {
    name,
    seconds: bench.quick ? 20 : 60,
    bytes: 0,
    async run() {
      const side = async (config: Record<string, unknown>, models: Model[]) => {
        const model = await Model.random(config, { device: bench.device, dtype: 'bf16' });
        models.push(model);
        const session = await model.createSession({ maxKvLen: kvLen + STEPS });
        await session.prefill(promptTokens(kvLen, sizes.vocab_size));
        const { k, v } = session.kvCacheBytes;
        const decode = () => timeDecode(session, kvLen, STEPS, sizes.vocab_size);
        return { decode, cacheBytes: k + v, weightBytes: model.weightBytes };
      };
      const { latent: latentConfig, expanded: expandedConfig } = configs(sizes);
      bench.progress('filling the caches');
      const models: Model[] = [];
      try {
        const latent = await side(latentConfig, models);
        const expanded = await side(expandedConfig, models);
        const rounds = bench.quick ? { minRounds: 2, maxRounds: 3 } : { minRounds: 5, maxRounds: 20 };
        const ms = await interleaveFor(
          { latent: latent.decode, expanded: expanded.decode },
          { seconds: bench.quick ? 0.5 : 10, ...rounds, check: bench.check },
        );
        const bytes = ({ cacheBytes, weightBytes }: typeof latent): number => cacheBytes + weightBytes;
        const at = { length: kvLen };
        const time = (what: 'latent' | 'expanded', run: typeof latent) =>
          figure({
            name: `${name}, ${what} cache`,
            value: ms[what].median,
            unit: 'ms',
            better: 'less',
            limit: null,
            limitName: 'not measured',
            target: null,
            samples: { ms: ms[what] },
            group: 'mla',
            at: { ...at, what },
            bytes: bytes(run),
          });
        return {
          figures: [
            time('latent', latent),
            time('expanded', expanded),
            figure({
              name: `${name}, latent over expanded`,
              value: ms.latent.median / ms.expanded.median,
              unit: '',
              better: 'less',
              limit: bytes(latent) / bytes(expanded),
              limitName: 'bytes over bytes',
              target: null,
              samples: { latentMs: ms.latent, expandedMs: ms.expanded },
              group: 'mla',
              at: { ...at, what: 'ratio' },
            }),
          ],
          setup: {
            latent: { cacheBytes: latent.cacheBytes, weightBytes: latent.weightBytes },
            expanded: { cacheBytes: expanded.cacheBytes, weightBytes: expanded.weightBytes },
          },
        };
      } finally {
        for (const model of models) model.dispose();
      }
    },
  };
}

export const mlaSuite: Suite = {
  description: 'latent attention (MLA): decode with the latent cache against the expanded cache, 2k and 8k tokens',
  kinds: ['cuda', 'cpu', 'trial'],
  plan(bench) {
    const kvLens = byKind(bench, { cuda: [2048, 8192], cpu: bench.quick ? [2048] : [2048, 8192], trial: [128] });
    const sizes = byKind(bench, { cuda: COMMON, cpu: COMMON, trial: { ...COMMON, ...TRIAL } });
    return {
      setup: { dtype: 'bf16', batchSize: 1, shape: 'MiniCPM3-4B', ...sizes, ...LATENT, kvLens },
      cells: kvLens.map((kvLen) => cell(bench, sizes, kvLen)),
    };
  },
};
