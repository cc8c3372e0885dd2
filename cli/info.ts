import { type DeviceInfo, listDevices, Model } from '../lib/index';
import { megabytes, ProgressBar } from './progress';

export interface InfoCommand {
  model?: string;
  device: string;
  json?: boolean;
}

/** Prints the devices, and with --model what it is and what its cache costs. Resolves to the exit status. */
export async function info(command: InfoCommand): Promise<number> {
  const devices = listDevices();
  const model = command.model === undefined ? undefined : await describe(command.model, command.device);
  if (command.json) {
    process.stdout.write(`${JSON.stringify({ devices, model })}\n`);
    return 0;
  }
  const lines = devices.flatMap(deviceLines);
  if (model) lines.push('', ...modelLines(model));
  process.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

type ModelInfo = Awaited<ReturnType<typeof describe>>;

async function describe(directory: string, device: string) {
  const loading = new ProgressBar('loading', megabytes);
  const model = await Model.load(directory, {
    device: device as 'auto',
    onProgress: ({ loadedBytes, totalBytes }) => loading.update(loadedBytes, totalBytes),
  }).finally(() => loading.clear());
  try {
    const { config, dtype, numParameters, weightBytes } = model;
    const { numLayers, numKHeads, numVHeads, headDimQk, headDimVo } = config;
    const perHeadSize = numLayers * (dtype === 'f32' ? 4 : 2);
    const k = perHeadSize * numKHeads * headDimQk;
    const v = perHeadSize * numVHeads * headDimVo;
    // The paper's measure: against a cache that has as many K heads as V heads (equation 1).
    const shared = perHeadSize * numVHeads * headDimQk + v;
    const tokenizer = model.tokenizer === null ? null : { vocabSize: model.tokenizer.vocabSize };
    const kvBytesPerToken = { k, v, saving: 1 - (k + v) / shared };
    return {
      directory,
      device: model.device.id,
      config,
      dtype,
      numParameters,
      weightBytes,
      kvBytesPerToken,
      tokenizer,
    };
  } finally {
    model.dispose();
  }
}

function deviceLines(device: DeviceInfo): string[] {
  const lines = [`${device.id.padEnd(8)} ${device.name}${device.usable ? '' : '  [not usable]'}`];
  const add = (name: string, value: string) => lines.push(`         ${name.padEnd(10)} ${value}`);
  if (device.reason) add('reason', device.reason);
  if (device.totalMemory > 0) add('memory', bytes(device.totalMemory));
  if (device.computeCapability) add('capability', device.computeCapability);
  for (const [name, value] of Object.entries(device.details)) add(name, value);
  return lines;
}

function modelLines({
  directory,
  device,
  config,
  dtype,
  numParameters,
  weightBytes,
  kvBytesPerToken,
  tokenizer,
}: ModelInfo): string[] {
  const { k, v, saving } = kvBytesPerToken;
  const heads = `Q ${config.numQHeads}, K ${config.numKHeads}, V ${config.numVHeads}`;
  const rows: [string, string][] = [
    ['model', directory],
    ['architecture', `${config.architecture}, ${config.numLayers} layers`],
    ['heads', `${heads}; size ${config.headDimQk} of Q and K, ${config.headDimVo} of V`],
    ['sizes', `hidden ${config.hiddenSize}, FFN ${config.intermediateSize}, augmented Q ${config.augQSize || 'none'}`],
    ['vocabulary', `${config.vocabSize}${tokenizer ? `, tokenizer ${tokenizer.vocabSize}` : ', no tokenizer'}`],
    ['context', `${config.maxPositionEmbeddings} tokens, RoPE theta ${config.ropeTheta}`],
    ['parameters', `${(numParameters / 1e6).toFixed(2)} M`],
    ['weights', `${bytes(weightBytes)} as ${dtype} on ${device}`],
    ['KV cache', `${k + v} bytes per token: K ${k}, V ${v}`],
    ['saving', `${(100 * saving).toFixed(1)} % against a cache with V's ${config.numVHeads} heads for K too`],
  ];
  return rows.map(([name, value]) => `${name.padEnd(13)} ${value}`);
}

function bytes(count: number): string {
  const [unit, name] = count >= 2 ** 30 ? [2 ** 30, 'GiB'] : count >= 2 ** 20 ? [2 ** 20, 'MiB'] : [2 ** 10, 'KiB'];
  return `${(count / unit).toFixed(1)} ${name}`;
}
