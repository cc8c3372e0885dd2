import { constants } from 'node:os';
import { join } from 'node:path';
import { explain } from '../lib/explain';
import { checkConfig } from '../lib/hub/index';
import { computeFactors } from './convert_absorb';
import {
  convertConfig,
  type KeyRotation,
  type ModelShape,
  readRotation,
  readShape,
} from './convert_config';
import { checkOutput, indexName, readCheckpointFiles, type Shard } from './convert_files';
import { type ConvertCommand, makePlan, type Plan } from './convert_plan';
import { quantizeCheckpoint, type WeightOptions } from './convert_weights';
import { bytesOf, newIndex, newTensors, shardBytes, writeConverted } from './convert_write';
import { CliError } from './errors';
import { sourceDirectory } from './hub';
import { ProgressBar } from './progress';
import { printable } from './safetensors';

/** Resolves to the exit status: 0, or 128 plus the number of the signal that ended it. */
export async function convert(
  input: string,
  output: string,
  command: ConvertCommand,
): Promise<number> {
  const interrupt = new AbortController();
  let status = 0;
  let directory = input;
  const onSignal = (signal: NodeJS.Signals) => {
    status = 128 + constants.signals[signal];
    if (interrupt.signal.aborted) process.exit(status); // a second signal exits at once
    interrupt.abort();
  };
  process.on('SIGINT', onSignal).on('SIGTERM', onSignal);
  try {
    directory = await sourceDirectory(input, interrupt.signal);
    const weights = weightOptions(command);
    const write = (report: object, text: string) =>
      process.stdout.write(command.json ? `${JSON.stringify(report)}\n` : text);
    if (weights) {
      const report = await quantizeCheckpoint(directory, output, weights, interrupt.signal);
      write(report, `${report.directory}: ${sizesText(report)}\n${leftOutText(report)}`);
    } else {
      const report = await run(directory, output, command, interrupt.signal);
      write(report, reportText(report));
    }
    return 0;
  } catch (error) {
    const isInterrupt = (error as { code?: string }).code === 'ABORT_ERR' && status !== 0;
    if (error !== interrupt.signal.reason && !isInterrupt) throw await explain(directory, error);
    process.stderr.write('\n'); // after the ^C that the terminal printed
    return status;
  } finally {
    process.off('SIGINT', onSignal).off('SIGTERM', onSignal);
  }
}

/** Null without --weight-type. */
function weightOptions({ weightType, groupSize, ...command }: ConvertCommand) {
  const wrong = (what: string) => new CliError('ERR_INVALID_ARGUMENT', what);
  if (weightType === undefined) {
    if (groupSize !== undefined) throw wrong('--group-size requires --weight-type');
    return null;
  }
  if (weightType !== 'i8' && weightType !== 'i4')
    throw wrong(`--weight-type must be i8 or i4, not '${printable(weightType)}'`);
  const { keyHeads, valueHeads, keyHeadDim, kvGroupSharing } = command;
  if ([keyHeads, valueHeads, keyHeadDim, kvGroupSharing].some((value) => value !== undefined))
    throw wrong('--weight-type cannot be combined with options about heads: convert twice');
  if (groupSize !== undefined && ![32, 64, 128].includes(groupSize))
    throw wrong(`--group-size must be 32, 64 or 128, not ${groupSize}`);
  return { weightType, groupSize: groupSize ?? 32 } as WeightOptions;
}

type Report = Awaited<ReturnType<typeof run>>;

async function run(input: string, output: string, command: ConvertCommand, signal: AbortSignal) {
  const target = await checkOutput(input, output);
  const files = await readCheckpointFiles(input);
  const { shards, index } = files;
  const configPath = join(input, 'config.json');
  const shape = readShape(configPath, files.config);
  const plan = makePlan(files, shape, command);
  const before = shards.flatMap(({ file }) => file.tensors);
  const after = shards.flatMap((shard) => newTensors(shard, plan));
  const facts = {
    augmentedQ: before.some(({ name }) => /\.self_attn\.q_(gate|up|down)_proj\.weight$/.test(name)),
    lmHead: before.some(({ name }) => name === 'lm_head.weight'),
  };
  const config = convertConfig(
    configPath,
    files.config,
    shape,
    plan.to,
    facts,
    command.kvGroupSharing === true,
  );

  // Not every RoPE scaling can be combined with a lift.
  if (command.keyHeadDim === 'half') checkConfig(new Map([['config.json', config]]), output);
  await factorKeys(plan, shape, () => readRotation(configPath, files.config, shape), signal);
  const weightBytes = { from: bytesOf(before), to: bytesOf(after) };
  const conversion = {
    title: 'converting',
    config,
    index: index && newIndex(join(input, indexName), index, shards, plan),
    shardBytes: (shard: Shard) => shardBytes(shard, plan),
    weightBytes: weightBytes.to,
  };
  await writeConverted(input, target, files, conversion, signal);
  return {
    directory: output,
    numKHeads: { from: shape.numKHeads, to: plan.to.numKHeads },
    numVHeads: { from: shape.numVHeads, to: plan.to.numVHeads },
    keyHeadDim: { from: shape.keyHeadDim, to: plan.to.keyHeadDim },
    weightBytes,
    convertedTensors: plan.changes.size,
    leftOut: files.leftOut,
  };
}

/** Computes the factors of K for `--key-head-dim N`. */
async function factorKeys(
  { absorption, k }: Plan,
  shape: ModelShape,
  rotation: () => KeyRotation,
  signal: AbortSignal,
): Promise<void> {
  if (absorption === undefined) return;
  const bar = new ProgressBar('factoring K', (done, total) => `${done}/${total} layers`);
  try {
    await computeFactors(absorption, shape, k, rotation(), signal, (done, total) =>
      bar.update(done, total),
    );
  } finally {
    bar.clear();
  }
}

function reportText(report: Report): string {
  const { numKHeads, numVHeads, keyHeadDim } = report;
  const change = ({ from, to }: { from: number; to: number }) =>
    from === to ? `${to}` : `${from} -> ${to}`;
  const lines = [
    `${report.directory}: K heads ${change(numKHeads)}, V heads ${change(numVHeads)}, ` +
      `K head size ${change(keyHeadDim)}`,
    `${report.convertedTensors} tensors converted, ${sizesText(report)}`,
  ];
  return `${lines.join('\n')}\n${leftOutText(report)}`;
}

function sizesText({ weightBytes }: Pick<Report, 'weightBytes'>): string {
  const size = (bytes: number) => `${(bytes / 1e6).toFixed(1)} MB`;
  return `weights ${size(weightBytes.from)} -> ${size(weightBytes.to)}`;
}

function leftOutText({ leftOut }: Pick<Report, 'leftOut'>): string {
  if (leftOut.length === 0) return '';
  return `not copied, as not part of the checkpoint: ${leftOut.map(printable).join(', ')}\n`;
}
