// Decoding steps as CUDA graphs: what the host has to do for a token, and what becomes of failures.

import { type DecodeGraphs, type DeviceId, listDevices, Model } from '../../lib/index';
import { randomCheckpoint } from '../support/checkpoints';
import { runScript } from '../support/children';
import { tldrDirectory } from '../support/fixtures';
import { emulation } from './module';

const there = listDevices().some(({ id }) => (id as string) === 'emulated');

const INVALID_VALUE = 1;
const OUT_OF_MEMORY = 2;
const LAUNCH_FAILURE = 719;

interface Outcome {
  tokens: number[][];
  graphs: DecodeGraphs;
}

async function withModel<T>(use: (model: Model) => Promise<T>): Promise<T> {
  const { config } = randomCheckpoint({ architecture: 'sigma', heads: [8, 2, 4] });
  const model = await Model.random(
    { ...config, num_hidden_layers: 2 },
    { device: 'emulated' as DeviceId, dtype: 'bf16' },
  );
  try {
    return await use(model);
  } finally {
    emulation().fault('', 0, 0, 0);
    model.dispose();
  }
}

const prompt = [1, 2, 3];
const generate = async (model: Model, maxTokens = 12): Promise<number[]> =>
  (await model.generate(prompt, { maxTokens, temperature: 1, seed: 5 }).result).tokens;

(there ? describe : describe.skip)('decoding steps on an emulated GPU', () => {
  let expected: number[] = [];

  beforeAll(async () => {
    expected = await withModel((model) => generate(model));
  });

  it('are launched once, then recorded and replayed', async () => {
    await withModel(async (model) => {
      expect(model.decodeGraphs).toEqual({ recorded: 0, replayed: 0, failure: null });
      const session = await model.createSession();
      await session.prefill(prompt);
      await session.decode(4);
      expect(model.decodeGraphs).toEqual({ recorded: 0, replayed: 0, failure: null });
      for (let i = 0; i < 5; i++) await session.decode(4);
      expect(model.decodeGraphs).toEqual({ recorded: 1, replayed: 5, failure: null });
    });
  });

  it('take a handful of calls of the CUDA runtime', async () => {
    await withModel(async (model) => {
      const session = await model.createSession();
      await session.prefill(prompt);
      await session.decode(4);
      await session.decode(4);
      emulation().fault('*', Number.MAX_SAFE_INTEGER, 1, 0); // counts the calls
      await session.decode(4);
      const calls = emulation().fault('cudaSetDevice', Number.MAX_SAFE_INTEGER, 1, 0);
      await session.decode(4);
      const choices = emulation().fault('', 0, 0, 0); // of the GPU, which is the same all the time
      // The step's numbers, the graph, and of the logits the copy, its event and the wait.
      expect(calls - choices).toBe(5);
      expect(choices).toBe(3);
    });
  });

  it('have a graph for each number of sequences, range of lengths and pair of cache types', async () => {
    await withModel(async (model) => {
      const decode = async (length: number, options = {}) => {
        const session = await model.createSession(options);
        await session.prefill(Array.from({ length }, (_, i) => i % 7));
        for (let i = 0; i < 3; i++) await session.decode(4);
        session.dispose();
        return model.decodeGraphs?.recorded;
      };
      expect(await decode(3)).toBe(1);
      expect(await decode(200)).toBe(1);
      expect(await decode(256)).toBe(2);
      expect(await decode(3, { kType: 'i8' })).toBe(3);
      await Promise.all([generate(model), generate(model)]);
      expect(model.decodeGraphs?.recorded).toBe(4);
    });
  });

  it.each(['cudaStreamBeginCapture', 'cudaGraphInstantiate'])(
    'are launched if %s fails, and the model says so',
    async (call) => {
      await withModel(async (model) => {
        emulation().fault(call, 1, 1, INVALID_VALUE);
        expect(await generate(model)).toEqual(expected);
        expect(emulation().fault('', 0, 0, 0)).toBe(1); // it is not tried again
        const failure = expect.stringMatching(/invalid argument/);
        expect(model.decodeGraphs).toEqual({ recorded: 0, replayed: 0, failure });
        expect(await generate(model)).toEqual(expected);
      });
    },
  );

  it.each(['cudaStreamBeginCapture', 'cudaGraphInstantiate', 'cudaGraphLaunch'])(
    'are launched while %s lacks memory, and recorded later',
    async (call) => {
      await withModel(async (model) => {
        emulation().fault(call, 1, 2, OUT_OF_MEMORY);
        const session = await model.createSession();
        await session.prefill(prompt);
        const outcomes = [];
        for (let i = 0; i < 6; i++) outcomes.push(await session.decode(4).catch(({ code }) => code));
        // Only what replays a graph that was recorded can fail for want of memory.
        const errors = outcomes.filter((outcome) => typeof outcome === 'string');
        expect(errors).toEqual(call === 'cudaGraphLaunch' ? ['ERR_OUT_OF_MEMORY', 'ERR_OUT_OF_MEMORY'] : []);
        expect(model.decodeGraphs).toMatchObject({ recorded: 1, failure: null });
        expect(model.decodeGraphs?.replayed).toBeGreaterThanOrEqual(3);
      });
    },
  );

  it('are launched if a kernel cannot be recorded', async () => {
    await withModel(async (model) => {
      const session = await model.createSession();
      await session.prefill(prompt);
      const first = await session.decode(4);
      await session.truncate(prompt.length);
      emulation().fault('cudaLaunchKernelEx', 5, 1, 1);
      expect(await session.decode(4)).toEqual(first);
      emulation().fault('', 0, 0, 0);
      expect(model.decodeGraphs?.failure).toMatch(/invalid argument/);
    });
  });

  it.each(['cudaGraphLaunch', 'kernel'])('lose the device if it fails in %s', async (call) => {
    await withModel(async (model) => {
      const session = await model.createSession();
      await session.prefill(prompt);
      for (let i = 0; i < 3; i++) await session.decode(4);
      emulation().fault(call, 1, 1, LAUNCH_FAILURE);
      await expect(session.decode(4)).rejects.toMatchObject({ code: 'ERR_DEVICE_UNAVAILABLE' });
      expect(session.kvLen).toBe(prompt.length + 3);
    });
    expect(await withModel((model) => generate(model))).toEqual(expected);
  });

  it('can be disposed of while they are replayed', async () => {
    await withModel(async (model) => {
      const session = await model.createSession();
      await session.prefill(prompt);
      for (let i = 0; i < 3; i++) await session.decode(4);
      const last = session.decode(4);
      session.dispose();
      model.dispose();
      expect((await last).length).toBe(model.config.vocabSize);
    });
  });

  it('are launched with DIFFQKV_CUDA_GRAPHS=0, and draw the same tokens', async () => {
    const [on, off] = await Promise.all(
      ['1', '0'].map((value) =>
        runScript<Outcome>('emulation/gpu_trouble.cjs', ['generate', tldrDirectory], {
          env: { DIFFQKV_CUDA_GRAPHS: value },
        }),
      ),
    );
    expect(on?.graphs.failure).toBeNull();
    expect(on?.graphs.recorded).toBeGreaterThan(0);
    expect(on?.graphs.replayed).toBeGreaterThan(30);
    expect(off?.graphs).toEqual({ recorded: 0, replayed: 0, failure: 'DIFFQKV_CUDA_GRAPHS is 0' });
    expect(on?.tokens).toEqual(off?.tokens);
  });
});
