// How many kernels a decode step launches. A small model on a GPU spends most of its time on launches.

import { type DeviceId, listDevices, Model } from '../../lib/index';
import { randomCheckpoint } from '../support/checkpoints';
import { emulation } from './module';

const there = listDevices().some(({ id }) => (id as string) === 'emulated');

async function launchesOfStep(architecture: 'sigma' | 'llama', numLayers: number): Promise<number> {
  const { config } = randomCheckpoint({ architecture, heads: [8, 2, architecture === 'sigma' ? 4 : 2] });
  const model = await Model.random(
    { ...config, num_hidden_layers: numLayers },
    { device: 'emulated' as DeviceId, dtype: 'bf16' },
  );
  try {
    const session = await model.createSession({ maxKvLen: 64 });
    await session.prefill([1, 2, 3]);
    emulation().fault('cudaLaunchKernelEx', Number.MAX_SAFE_INTEGER, 1, 0); // counts the calls
    await session.decode(4);
    return emulation().fault('', 0, 0, 0);
  } finally {
    model.dispose();
  }
}

(there ? it : it.skip).each([
  ['llama', 6], // norm + Q + K + V, append, attention, O, norm + gate + up, down
  ['sigma', 7], // norm + K + V + gate + up of Q, down of Q, append, attention, O, norm + gate + up, down
] as const)('a decode step of %s launches %i kernels for each layer', async (architecture, perLayer) => {
  const [one, three] = [await launchesOfStep(architecture, 1), await launchesOfStep(architecture, 3)];
  expect((three - one) / 2).toBe(perLayer);
});
