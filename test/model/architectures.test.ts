// Public architectures, compared with Hugging Face transformers in float64. The checkpoints are in
// architectures/ and come from test/tools/make_architecture_fixtures.py.

import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { architecturesDirectory, writeArchitecture } from '../support/architectures';
import { temporaryDirectories } from '../support/checkpoints';
import { firstBitDifference, logitError, modelTolerances } from '../support/compare';
import { errorOf, onEveryDevice } from '../support/devices';
import { type ExpectedCase, expectAnswers } from '../support/fixtures';

type Case = Omit<ExpectedCase, 'all_positions_logsumexp'>;

interface Variant {
  name: string;
  /** Fields that replace those of config.json. */
  config: Record<string, unknown>;
  cases: Case[];
}

const variants = readdirSync(architecturesDirectory).flatMap((folder) => {
  const expected = JSON.parse(readFileSync(join(architecturesDirectory, folder, 'expected.json'), 'utf8'));
  return (expected.variants as Variant[]).map((variant) => ({ ...variant, folder }));
});

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const checkpoint = (folder: string, changes: Record<string, unknown>) =>
  writeArchitecture(directories.make(), folder, changes);

onEveryDevice((device) => {
  it.each([
    ['llama-rope', { attention_bias: true }, 'ERR_INVALID_CHECKPOINT', 'self_attn.q_proj.bias'],
    ['llama-rope', { mlp_bias: true }, 'ERR_INVALID_CHECKPOINT', 'mlp.gate_proj.bias'],
    ['llama-bias', { attention_bias: false }, 'ERR_UNSUPPORTED_MODEL', 'self_attn.k_proj.bias'],
    ['llama-bias', { mlp_bias: false }, 'ERR_UNSUPPORTED_MODEL', 'mlp.down_proj.bias'],
    ['qwen3', { model_type: 'llama', architectures: null }, 'ERR_UNSUPPORTED_MODEL', 'self_attn.k_norm.weight'],
    ['qwen2', { model_type: 'llama', architectures: null }, 'ERR_UNSUPPORTED_MODEL', 'self_attn.k_proj.bias'],
  ])('rejects tensors that do not fit the config: %s %j', async (folder, changes, code, tensor) => {
    const error = await errorOf(() => Model.load(checkpoint(folder, changes), { device: device() }));
    expect({ code: error.code, message: error.message }).toEqual({ code, message: expect.stringContaining(tensor) });
  });

  it('computes the logits of a Ministral that is named Mistral but has layer_types', async () => {
    const { cases } = variants.find((variant) => variant.folder === 'ministral') as Variant;
    const named = { architectures: ['MistralForCausalLM'], model_type: 'mistral' };
    const model = await Model.load(checkpoint('ministral', named), { device: device(), dtype: 'f32' });
    for (const expected of cases) {
      const session = await model.createSession();
      await expectAnswers(session, expected, modelTolerances.f32);
      session.dispose();
    }
    model.dispose();
  });

  // The defaults of transformers, which the files of these folders spell out.
  it.each([
    ...[
      'arcee',
      'diffllama',
      'ernie4_5',
      'exaone4',
      'gemma',
      'gemma2',
      'gemma3',
      'glm4',
      'helium',
      'llama-bias',
      'youtu',
    ],
    ...['ministral', 'mistral', 'olmo2', 'olmo3', 'phi3', 'qwen2', 'seed_oss', 'smollm3'],
  ])('%s has the defaults of transformers', async (folder) => {
    const { cases } = variants.find((variant) => variant.folder === folder) as Variant;
    const { tokens } = cases.at(-1) as Case;
    const logits = async (changes: Record<string, unknown>) => {
      const model = await Model.load(checkpoint(folder, changes), { device: device(), dtype: 'f32' });
      const session = await model.createSession();
      const result = await session.prefill(tokens);
      model.dispose();
      return result;
    };
    const missing = {
      rope_parameters: undefined,
      rms_norm_eps: undefined,
      hidden_act: undefined,
      hidden_activation: undefined,
    };
    expect(firstBitDifference(await logits(missing), await logits({}))).toBe(-1);
    // Another base or eps gives other bits.
    const { rope_parameters: ropes } = JSON.parse(
      readFileSync(join(architecturesDirectory, folder, 'config.json'), 'utf8'),
    );
    const other = JSON.parse(JSON.stringify(ropes).replaceAll(/"rope_theta":[^,}]*/g, '"rope_theta":123'));
    expect(firstBitDifference(await logits({ rope_parameters: other }), await logits({}))).not.toBe(-1);
    expect(firstBitDifference(await logits({ rms_norm_eps: 3e-6 }), await logits({}))).not.toBe(-1);
  });

  describe.each(variants)('$folder $name', ({ folder, config, cases }) => {
    let directory: string;
    beforeAll(() => {
      directory = checkpoint(folder, config);
    });

    it.each(['f32', 'bf16', 'f16'] as const)('computes the logits of transformers in %s', async (dtype) => {
      const model = await Model.load(directory, { device: device(), dtype });
      const tolerance = modelTolerances[dtype];
      try {
        for (const expected of cases) {
          const session = await model.createSession();
          await expectAnswers(session, expected, tolerance);
          session.dispose();
        }
      } finally {
        model.dispose();
      }
    });

    it('computes the same in pieces, after truncate, in a fork and in a batch', async () => {
      const model = await Model.load(directory, { device: device(), dtype: 'f32' });
      const { tokens, greedy } = cases.at(-1) as Case;
      const next = greedy[0] as number;
      try {
        const session = await model.createSession();
        const whole = await session.prefill(tokens);
        const step = await session.decode(next);

        await session.truncate(tokens.length);
        expect(firstBitDifference(await session.decode(next), step)).toBe(-1);

        await session.truncate(tokens.length);
        const fork = await session.fork();
        await session.decode((next + 1) % model.config.vocabSize);
        expect(firstBitDifference(await fork.decode(next), step)).toBe(-1);
        fork.dispose();

        await session.truncate(0);
        await session.prefill(tokens.slice(0, 7));
        expect(logitError(await session.prefill(tokens.slice(7)), whole)).toBeLessThanOrEqual(modelTolerances.f32);
        session.dispose();

        // Prompts of several lengths, which decode together.
        const prompts = [tokens, tokens.slice(0, 9), tokens.slice(3)];
        const options = { maxTokens: 5, temperature: 0 };
        const alone: number[][] = [];
        for (const prompt of prompts) alone.push((await model.generate(prompt, options).result).tokens);
        const results = await Promise.all(prompts.map((prompt) => model.generate(prompt, options).result));
        expect(results.map((result) => result.tokens)).toEqual(alone);
      } finally {
        model.dispose();
      }
    });
  });
});
