// `bench step`: decode steps beside their floors and goals. With a GPU they are measured (suites/step.ts); without one, the
// times are those of step_model.ts, by arithmetic.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type DeviceInfo, listDevices } from '../lib/index';
import { stopOnInterrupt } from './interrupt';
import { describeVersions } from './machine';
import { defaultFile, showOutcome } from './outcome';
import { runSuites } from './run';
import {
  ATTENTION_CASES,
  kvLensOf,
  modelAttention,
  modelStep,
  STEP_CASES,
  type StepCase,
  sizesOfCase,
} from './step_cases';
import { BUILT, layerKernels, type StepDesign, type StepKernel, stepKernels } from './step_kernels';
import { ATTENTION, H200, LAUNCH_US, type Loss, type ModeledTime } from './step_model';
import { kindOf } from './suite';
import { stepSuite } from './suites/step';
import { alignTable, formatNumber } from './table';

/** What each part of a design can be. */
const CHOICES = {
  normTokens: ['0', '8', '16'],
  keysAndValues: ['own', 'joined'],
  gemvTokens: ['8', '16'],
  launches: ['host', 'graph', 'dependent'],
  copies: ['cp.async', 'bulk'],
  sampling: ['row', 'rows', 'blocks'],
  host: ['waits', 'follows'],
} as const satisfies Record<keyof StepDesign, readonly string[]>;

const LAUNCHES = CHOICES.launches;

const designText = (design: StepDesign): string =>
  Object.entries(design)
    .map(([part, value]) => `${part}=${value}`)
    .join(',');

const USAGE = `Usage: bench step [options]

Decode steps of Sigma-1.5B, Sigma-10B and a Llama of 8B, and decode attention, beside the time that their
bytes take at the peak of an ${H200.name}'s memory, and beside their goals. With a GPU the times are measured.
Without one they are computed, by arithmetic, from the kernels' bytes and launches.

Options:
  --device ID    the GPU to measure (default: the first usable one)
  --arithmetic   no measurement, even with a GPU
  --with A=B,... by arithmetic, with other parts than the built design has:
${Object.entries(CHOICES)
  .map(([part, values]) => `                 ${part}: ${values.join(', ')} (built: ${BUILT[part as keyof StepDesign]})`)
  .join('\n')}
  --quick        fewer cases and samples of a measurement
  --json FILE    the result as JSON (default: only a measurement has a file)
  --resume       keep the figures in that file, and measure the rest
  --check        exit status 1 if a measured step misses its goal, or nothing is measured
  -h, --help     print this text
`;

const OPTIONS = {
  device: { type: 'string' },
  arithmetic: { type: 'boolean', default: false },
  with: { type: 'string', default: '' },
  quick: { type: 'boolean', default: false },
  json: { type: 'string' },
  resume: { type: 'boolean', default: false },
  check: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS }).values;
}

/** BUILT with the parts of 'launches=graph,copies=bulk'. Throws if it does not name a part or a value of one. */
export function parseDesign(text: string): StepDesign {
  const parts = text.split(',').filter((part) => part !== '');
  const changes = parts.map((part) => {
    const [key = '', value = ''] = part.split('=');
    if (!Object.hasOwn(CHOICES, key))
      throw new Error(`--with: there is no '${key}', only ${Object.keys(CHOICES).join(', ')}`);
    const values: readonly string[] = CHOICES[key as keyof StepDesign];
    if (!values.includes(value)) throw new Error(`--with: ${key} is '${value}'; it must be ${values.join(' or ')}`);
    return [key, /^\d+$/.test(value) ? Number(value) : value];
  });
  return { ...BUILT, ...Object.fromEntries(changes) };
}

const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
const milliseconds = (ms: number): string => `${formatNumber(ms)} ms`;
const microseconds = (ms: number): string => `${formatNumber(ms * 1e3)} us`;
const megabytes = (bytes: number): string => `${formatNumber(bytes / 1e6)} MB`;

/** 'launches: 0.898 ms, 264 at 3.4 us' */
function lossText(loss: Loss, time: ModeledTime, design: StepDesign, unit: (ms: number) => string): string {
  const { gbPerS, fixedUs } = ATTENTION[design.copies];
  const causes: Record<Loss, string> = {
    memory: `memory: at ${H200.reachableGbPerS}, not ${H200.peakGbPerS} GB/s`,
    'attention rate': `attention's copies: at ${gbPerS}, not ${H200.reachableGbPerS} GB/s`,
    'attention fixed': `attention's fixed time: ${fixedUs} us each`,
    activations: 'activations: reads and writes besides weights and cache',
    FLOPs: 'products: their FLOPs take longer than their bytes',
    launches: `launches: ${time.launches} at ${LAUNCH_US[design.launches]} us`,
    sampling: 'sampling',
    host: 'the host: the GPU waits for it after each token',
  };
  return `${unit(time.losses[loss])}  ${causes[loss]}`;
}

/** What launches, or in attention alone its fixed time, may cost at most if the time is to be `excess` less. */
function neededText({ launches, losses }: ModeledTime, excess: number): string {
  const [what, loss, count]: [string, Loss, number] =
    losses.launches > 0 ? ['launches', 'launches', launches] : ['a fixed time', 'attention fixed', 1];
  const left = losses[loss] - excess;
  return left > 0
    ? `All else equal, the goal needs ${what} of at most ${microseconds(left / count)}.`
    : `All else equal, even ${what} of 0 us would not reach the goal.`;
}

/** Why a time is above its floor, the most important reason first; those of less than a percent of the gap are left out. */
export function explainGap(
  name: string,
  goal: number,
  time: ModeledTime,
  design: StepDesign,
  unit: (ms: number) => string = milliseconds,
): string {
  const { floorMs, ms, share, losses } = time;
  const gap = ms - floorMs;
  const allowed = floorMs / goal;
  const verdict =
    share >= goal
      ? `reaches its goal of ${percent(goal)}`
      : `falls short of its goal of ${percent(goal)}, which allows ${unit(allowed)}: ${unit(ms - allowed)} less`;
  const order = (Object.keys(losses) as Loss[])
    .filter((loss) => losses[loss] >= gap / 100)
    .sort((a, b) => losses[b] - losses[a]);
  const lines = order.map((loss) => `  ${lossText(loss, time, design, unit)}`);
  if (share < goal) lines.push(`  ${neededText(time, ms - allowed)}`);
  return [`${name}: ${unit(ms)}, ${percent(share)}, ${verdict}. Above the floor of ${unit(floorMs)}:`, ...lines].join(
    '\n',
  );
}

/** The list of kernels of a step as a table. */
export function formatKernels(kernels: readonly StepKernel[]): string {
  return alignTable(
    [
      ['what', 'kernel', 'launches', 'weights', 'cache', 'activations'],
      ...kernels.map(({ name, kernel, launches, weights, cache, activations }) => [
        name,
        kernel,
        String(launches),
        megabytes(weights),
        megabytes(cache),
        megabytes(activations),
      ]),
    ],
    (column) => column < 2,
  );
}

/** The whole text of a model, by arithmetic. */
export function formatArithmetic(design: StepDesign): string {
  const inMode = (step: StepCase, launches: StepDesign['launches']) => modelStep(step, { ...design, launches });
  const goalText = (goal: number | null) => (goal === null ? '' : percent(goal));
  const steps = STEP_CASES.map((step) => {
    const { floorMs, launches } = modelStep(step, design);
    const modes = LAUNCHES.map((mode) => inMode(step, mode)).flatMap(({ ms, share }) => [
      milliseconds(ms),
      percent(share),
    ]);
    return [step.name, milliseconds(floorMs), String(launches), ...modes, goalText(step.goal)];
  });
  const attention = ATTENTION_CASES.map((one) => {
    const { floorMs, ms, share } = modelAttention(one, design);
    return [one.name, microseconds(floorMs), microseconds(ms), percent(share), percent(one.goal)];
  });
  const aimed = STEP_CASES.filter(({ goal }) => goal !== null);
  const first = STEP_CASES[0] as StepCase;
  const modeHeads = LAUNCHES.flatMap((mode) => [mode === design.launches ? `[${mode}]` : mode, 'share']);
  return [
    `By arithmetic, not measured: an ${H200.name}, weights and cache in bf16, greedy tokens. Estimates, +-25 %.`,
    `Floor: weights and cache at ${H200.peakGbPerS} GB/s. Times with launches by the host, as a CUDA graph, and as a graph`,
    'of dependent launches; that of the design is in brackets.',
    `Design: ${designText(design)}`,
    '',
    alignTable([['step', 'floor', 'launches', ...modeHeads, 'goal'], ...steps], (column) => column === 0),
    '',
    alignTable([['attention alone', 'floor', 'time', 'share', 'goal'], ...attention], (column) => column === 0),
    '',
    'Why, by this design:',
    ...aimed.map((step) => explainGap(step.name, step.goal as number, modelStep(step, design), design)),
    ...ATTENTION_CASES.map((one) => explainGap(one.name, one.goal, modelAttention(one, design), design, microseconds)),
    '',
    `The kernels of ${first.name}, all layers together:`,
    formatKernels(stepKernels(sizesOfCase(first), kvLensOf(first), design)),
  ].join('\n');
}

/** The same for --json. */
export function arithmeticResult(design: StepDesign, argv: readonly string[]) {
  const { commit, diffqkv } = describeVersions();
  const constants = { card: H200, launchUs: LAUNCH_US, attention: ATTENTION };
  return {
    suite: 'step',
    source: 'by arithmetic',
    command: ['bench', 'step', ...argv].join(' '),
    version: diffqkv,
    commit,
    design,
    constants,
    steps: STEP_CASES.map((step) => ({
      ...step,
      launchesPerLayer: layerKernels(sizesOfCase(step), kvLensOf(step), design).reduce((n, one) => n + one.launches, 0),
      kernels: stepKernels(sizesOfCase(step), kvLensOf(step), design),
      times: Object.fromEntries(LAUNCHES.map((launches) => [launches, modelStep(step, { ...design, launches })])),
    })),
    attention: ATTENTION_CASES.map((one) => ({ ...one, time: modelAttention(one, design) })),
  };
}

/** The GPU to measure; null without one. Throws if the device of this id cannot be measured. */
function deviceToMeasure(id: string | undefined): DeviceInfo | null {
  const devices = listDevices();
  if (id === undefined) return devices.find(({ kind, usable }) => kind === 'cuda' && usable) ?? null;
  const named = devices.find((info) => info.id === id || (id === 'cuda' && info.kind === 'cuda'));
  if (named === undefined)
    throw new Error(`there is no device '${id}', only ${devices.map((info) => info.id).join(', ')}`);
  if (!named.usable) throw new Error(`device ${id} cannot be used: ${named.reason}`);
  if (!stepSuite.kinds.includes(kindOf(named))) throw new Error(`it can measure a GPU, not '${id}'`);
  return named;
}

/** Resolves to the exit status: that of a suite; 1 for wrong arguments, and with --check without a measurement. */
export async function runStep(argv: string[]): Promise<number> {
  let values: ReturnType<typeof parse>;
  let device: DeviceInfo | null;
  let design: StepDesign;
  try {
    values = parse(argv);
    device = values.arithmetic || values.with !== '' ? null : deviceToMeasure(values.device);
    design = parseDesign(values.with);
  } catch (error) {
    process.stderr.write(`bench step: ${(error as Error).message}\n\n${USAGE}`);
    return 1;
  }
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  if (device !== null) return measure(device, values, argv);
  const unusable = listDevices().find(({ kind, usable }) => kind === 'cuda' && !usable);
  if (unusable?.reason !== undefined) process.stderr.write(`bench step: no GPU to measure: ${unusable.reason}\n`);
  process.stdout.write(`${formatArithmetic(design)}\n`);
  if (values.json !== undefined) {
    const file = path.resolve(values.json);
    fs.mkdirSync(path.dirname(file), { recursive: true });
    fs.writeFileSync(file, `${JSON.stringify(arithmeticResult(design, argv), null, 2)}\n`);
  }
  if (values.check) process.stderr.write('bench step: nothing is measured, so --check fails\n');
  return values.check ? 1 : 0;
}

async function measure(
  device: DeviceInfo,
  { json, quick, resume, check }: ReturnType<typeof parse>,
  argv: readonly string[],
): Promise<number> {
  const file = json === undefined ? defaultFile('step', device, quick) : path.resolve(json);
  const stop = stopOnInterrupt();
  try {
    const suites = { step: stepSuite };
    const options = { name: 'step', suites, device, quick, resume, file, argv: ['step', ...argv], signal: stop.signal };
    return showOutcome(await runSuites(options), { file, check });
  } finally {
    stop.release();
  }
}
