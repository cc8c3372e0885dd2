import { rowBytes } from '../bench/arithmetic';
import {
  type DeviceInfo,
  listDevices,
  Model,
  type ModelConfig,
  type ModelOptions,
} from '../lib/index';
import { withLoadingBars } from './progress';

export interface InfoCommand {
  model?: string;
  weightType?: string;
  device: string;
  json?: boolean;
}

/**
 * Prints the devices and, with --model, the model's shape and the size of its KV cache. Resolves to
 * the exit status.
 */
export async function info(command: InfoCommand): Promise<number> {
  const devices = listDevices();
  const model = command.model === undefined ? undefined : await describe(command.model, command);
  if (command.json) {
    process.stdout.write(`${JSON.stringify({ devices, model })}\n`);
    return 0;
  }
  const lines = devices.flatMap(deviceLines);
  if (model) lines.push('', ...modelLines(model));
  process.stdout.write(`${lines.join('\n')}\n`);
  return 0;
}

const cacheTypes = ['f32', 'f16', 'bf16', 'i8', 'f8e4m3'] as const;
type CacheType = (typeof cacheTypes)[number];

/** Bytes of K and of V that the cache has for each token, in all layers. */
export function kvBytesPerToken(
  config: Omit<ModelConfig, 'augQSize'>,
  type: CacheType,
): { k: number; v: number } {
  const { numLayers, numKHeads, numVHeads, headDimK, headDimVo, vSharesK } = config;
  return {
    k: numLayers * numKHeads * rowBytes(type, headDimK),
    v: vSharesK ? 0 : numLayers * numVHeads * rowBytes(type, headDimVo),
  };
}

type ModelInfo = Awaited<ReturnType<typeof describe>>;

async function describe(directory: string, { device, weightType }: InfoCommand) {
  const model = await withLoadingBars((bars) =>
    Model.load(directory, {
      device: device as 'auto',
      weightType: weightType as ModelOptions['weightType'],
      ...bars,
    }),
  );
  try {
    const { config, dtype, numParameters, weightBytes, weightBytesByPart } = model;
    const byType = (tensor: 'k' | 'v') =>
      Object.fromEntries(
        cacheTypes.map((type) => [type, kvBytesPerToken(config, type)[tensor]]),
      ) as Record<CacheType, number>;
    const { k, v } = kvBytesPerToken(config, dtype as CacheType);
    // Equation 1 of the paper compares with a cache that has as many K heads as V heads, of Q's
    // size.
    const row = rowBytes(dtype, config.headDimQk);
    const saving = config.vSharesK
      ? null
      : 1 - (k + v) / (config.numLayers * config.numVHeads * row + v);
    const tokenizer = model.tokenizer === null ? null : { vocabSize: model.tokenizer.vocabSize };
    return {
      directory,
      device: model.device.id,
      config,
      dtype,
      weightType: model.weightType,
      numParameters,
      weightBytes,
      weightBytesByPart,
      kvBytesPerToken: { k, v, saving, types: { k: byType('k'), v: byType('v') } },
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
  weightType,
  numParameters,
  weightBytes,
  weightBytesByPart: parts,
  kvBytesPerToken: { k, v, saving, types },
  tokenizer,
}: ModelInfo): string[] {
  const listed = (of: Record<CacheType, number>) =>
    cacheTypes.map((type) => `${type} ${of[type]}`).join(', ');
  const heads = `Q ${config.numQHeads}, K ${config.numKHeads}, V ${config.numVHeads}`;
  const rows: [string, string][] = [
    ['model', directory],
    ['architecture', `${config.architecture}, ${config.numLayers} layers`],
    ['heads', `${heads}; size Q and K ${config.headDimQk}, V ${config.headDimVo}`],
    ...(config.keyLift
      ? [['K lift', `${config.keyLift}, from ${config.headDimK} in the cache`] as [string, string]]
      : []),
    [
      'sizes',
      `hidden ${config.hiddenSize}, FFN ${config.intermediateSize}, ` +
        `augmented Q ${config.augQSize || 'none'}`,
    ],
    [
      'vocabulary',
      `${config.vocabSize}${tokenizer ? `, tokenizer ${tokenizer.vocabSize}` : ', no tokenizer'}`,
    ],
    ['context', `${config.maxPositionEmbeddings} tokens, RoPE theta ${config.ropeTheta}`],
    ['parameters', `${(numParameters / 1e6).toFixed(2)} M`],
    [
      'weights',
      `${bytes(weightBytes)} as ${dtype}${weightType === dtype ? '' : ` and ${weightType}`} on ${device}`,
    ],
    ['by part', partsText(parts)],
    ['KV cache', `${k + v} bytes per token: K ${k}, V ${v}`],
    ['K by type', `${listed(types.k)} bytes per token`],
    ['V by type', `${listed(types.v)} bytes per token`],
    [
      'saving',
      saving === null
        ? 'V is the K rows themselves (latent attention)'
        : `${(100 * saving).toFixed(1)} % less than with ${config.numVHeads} K heads ` +
          `of size ${config.headDimQk}`,
    ],
  ];
  return rows.map(([name, value]) => `${name.padEnd(13)} ${value}`);
}

function partsText(parts: ModelInfo['weightBytesByPart']): string {
  const { embedding, output, attention, augmentedQ, ffn, other } = parts;
  const named = { embedding, output, attention, 'augmented Q': augmentedQ, FFN: ffn, other };
  const used = Object.entries(named).filter(([, count]) => count > 0);
  return used.map(([name, count]) => `${name} ${bytes(count)}`).join(', ');
}

function bytes(count: number): string {
  const [unit, name] =
    count >= 2 ** 30 ? [2 ** 30, 'GiB'] : count >= 2 ** 20 ? [2 ** 20, 'MiB'] : [2 ** 10, 'KiB'];
  return `${(count / unit).toFixed(1)} ${name}`;
}
