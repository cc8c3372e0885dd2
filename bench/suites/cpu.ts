// Suite cpu: the CPU device at the shape of Sigma-1.5B, beside the memory's read bandwidth and oneDNN's matmul rate.
import { openDevice } from '../../lib/index';
import { Ceilings } from '../ceilings';
import type { Suite, SuiteContext, SuiteResult } from '../figure';
import { measureAttention } from './cpu_attention';
import { measureModel } from './cpu_model';

async function run(context: SuiteContext): Promise<SuiteResult> {
  const device = await openDevice(context.deviceId as Parameters<typeof openDevice>[0]);
  const ceilings = Ceilings.open();
  try {
    const info = await ceilings.info();
    if (info.onednn === '')
      context.progress('oneDNN is not installed: its rate cannot be measured and prefill stands without a limit');
    const model = await measureModel(device, ceilings, info.onednn !== '', context);
    const attention = await measureAttention(device, ceilings, context);
    return {
      setup: { model: model.setup, attention: attention.setup },
      device: { ...device.info },
      ceilings: { ...info, onednn: info.onednn || null, model: model.ceilings, attention: attention.ceilings },
      figures: [...model.figures, ...attention.figures],
    };
  } finally {
    ceilings.close();
    device.dispose();
  }
}

export const cpuSuite: Suite = {
  description: 'decode, prefill and decode attention at the shape of Sigma-1.5B, on the CPU device',
  devices: ['cpu'],
  run,
};
