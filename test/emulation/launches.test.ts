// The kernels that a decode step launches, and their bytes. A small model on a GPU spends most of its time on launches. The
// list is that of the bench, which computes the time of a step from it.

import { stepBytes } from '../../bench/arithmetic';
import type { DeviceCounters } from '../../bench/counters';
import { BUILT, layerKernels, type StepKernel, stepKernels, total } from '../../bench/step_kernels';
import { type DeviceId, DiffqkvError, listDevices, Model, type ModelConfig } from '../../lib/index';
import { native } from '../../lib/internal';
import { randomCheckpoint } from '../support/checkpoints';
import { emulation } from './module';

const there = listDevices().some(({ id }) => (id as string) === 'emulated');
type Architecture = 'sigma' | 'llama';

function configOf(architecture: Architecture, numLayers: number): Record<string, unknown> {
  const { config } = randomCheckpoint({ architecture, heads: [8, 2, architecture === 'sigma' ? 4 : 2] });
  return { ...config, num_hidden_layers: numLayers };
}

const INVALID_CONFIGURATION = 9; // a cudaError_t that the device survives

async function withModel<T>(config: Record<string, unknown>, use: (model: Model) => Promise<T>): Promise<T> {
  const model = await Model.random(config, { device: 'emulated' as DeviceId, dtype: 'bf16' });
  try {
    return await use(model);
  } finally {
    emulation().fault('', 0, 0, 0);
    model.dispose();
  }
}

/** Launches of a step of `batchSize` sequences of 4 keys each, without the sampling. */
function launchesOfStep(architecture: Architecture, numLayers: number, batchSize: number): Promise<number> {
  return withModel(configOf(architecture, numLayers), async (model) => {
    const sessions = await Promise.all(Array.from({ length: batchSize }, () => model.createSession({ maxKvLen: 64 })));
    for (const session of sessions) await session.prefill([1, 2, 3]);
    const items = sessions.map((session) => ({
      session: session[native],
      tokens: Int32Array.of(4),
      chunks: 'all' as const,
      logits: new Float32Array(model.config.vocabSize),
    }));
    emulation().fault('cudaLaunchKernelEx', Number.MAX_SAFE_INTEGER, 1, 0); // counts the calls
    await model[native].step({ items });
    return emulation().fault('', 0, 0, 0);
  });
}

/** The kernel of the n-th launch of a step, counted from 1; null if it has fewer. */
function launchedKernel(architecture: Architecture, n: number): Promise<string | null> {
  return withModel(configOf(architecture, 1), async (model) => {
    const session = await model.createSession({ maxKvLen: 64 });
    await session.prefill([1, 2, 3]);
    emulation().fault('cudaLaunchKernelEx', n, 1, INVALID_CONFIGURATION);
    try {
      await session.decode(4);
      return null;
    } catch (error) {
      if (!(error instanceof DiffqkvError)) throw error;
      return /^\w+/.exec(error.message)?.[0] ?? error.message;
    }
  });
}

interface Traffic {
  /** What all threads ask for. */
  bytes: number;
  /** What memory moves: each sector that a launch reads, once. */
  distinctBytes: number;
  model: ModelConfig;
  weightBytes: number;
}

/** The bytes of the kernels of a step with `kvLen` keys. */
function trafficOfStep(config: Record<string, unknown>, numLayers: number, kvLen: number): Promise<Traffic> {
  return withModel({ ...config, num_hidden_layers: numLayers }, async (model) => {
    const session = await model.createSession({ maxKvLen: kvLen });
    await session.prefill(Array.from({ length: kvLen - 1 }, (_, i) => i));
    emulation().startCounting();
    await session.decode(4);
    const { bytesRead, distinctBytesRead, bytesWritten } = emulation().counters() as DeviceCounters;
    emulation().stopCounting();
    const [bytes, distinctBytes] = [bytesRead + bytesWritten, distinctBytesRead + bytesWritten];
    return { bytes, distinctBytes, model: model.config, weightBytes: model.weightBytes };
  });
}

(there ? describe : describe.skip)('a decode step launches the kernels that the bench lists', () => {
  it.each(['sigma', 'llama'] as const)('of %s, one by one', async (architecture) => {
    const config = await withModel(configOf(architecture, 1), async (model) => model.config);
    const listed = stepKernels(config, [4], BUILT).filter(({ kernel }) => kernel !== 'sample');
    const launched: string[] = [];
    for (;;) {
      const kernel = await launchedKernel(architecture, launched.length + 1);
      if (kernel === null) break;
      launched.push(kernel);
    }
    expect(launched).toEqual(listed.map(({ kernel }: StepKernel) => kernel));
  });

  it.each([
    ['llama', 1],
    ['sigma', 1],
    ['llama', 8],
    ['sigma', 8],
    ['llama', 9],
    ['sigma', 9],
  ] as const)('of %s for each layer with %i sequences', async (architecture, batchSize) => {
    const config = await withModel(configOf(architecture, 1), async (model) => model.config);
    const [one, three] = [
      await launchesOfStep(architecture, 1, batchSize),
      await launchesOfStep(architecture, 3, batchSize),
    ];
    const kvLens = new Array<number>(batchSize).fill(4);
    expect((three - one) / 2).toBe(total(layerKernels(config, kvLens, BUILT), 'launches'));
  });

  const sizes = { hidden_size: 384, intermediate_size: 1024, num_attention_heads: 8, head_dim: 64, vocab_size: 256 };
  const common = { tie_word_embeddings: true, max_position_embeddings: 256, rope_theta: 10000, rms_norm_eps: 1e-5 };
  const sigma = { model_type: 'sigma', aug_q_dim: 512, num_key_heads: 1, num_value_heads: 4 };
  const llama = { model_type: 'llama', num_key_value_heads: 2 };
  it.each([sigma, llama])('with the bytes of $model_type, and few more', async (architecture) => {
    const config = { ...sizes, ...common, ...architecture };
    const kvLen = 64;
    const [one, two] = [await trafficOfStep(config, 1, kvLen), await trafficOfStep(config, 2, kvLen)];
    const listed = layerKernels(one.model, [kvLen], BUILT);
    expect(two.weightBytes - one.weightBytes).toBe(total(listed, 'weights'));
    const bytes = total(listed, 'weights') + total(listed, 'cache') + total(listed, 'activations');
    // Each block of a product reads x again, which the L2 cache serves on a GPU.
    expect((two.bytes - one.bytes) / bytes).toBeGreaterThan(1);
    expect((two.bytes - one.bytes) / bytes).toBeLessThan(1.1);
    const floorOfLayer = total(listed, 'weights') + total(listed, 'cache');
    expect((two.distinctBytes - one.distinctBytes) / floorOfLayer).toBeGreaterThan(1);
    expect((two.distinctBytes - one.distinctBytes) / floorOfLayer).toBeLessThan(1.03);
    const step = stepKernels(one.model, [kvLen], BUILT);
    const floor = total(step, 'weights') + total(step, 'cache');
    expect(floor / stepBytes(one.model, one.weightBytes, [kvLen])).toBeCloseTo(1, 3);
  });
});
