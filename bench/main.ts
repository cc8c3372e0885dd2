// The harness: `npm run bench -- SUITE [options]`. Suites only use the public names of lib/, except for the limits of the CPU
// (lib/ceilings.ts).
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type DeviceInfo, listDevices } from '../lib/index';
import type { Figure } from './figure';
import { stopOnInterrupt } from './interrupt';
import { describeMachine } from './machine';
import { defaultFile, showOutcome } from './outcome';
import type { Result } from './result';
import { runSuites } from './run';
import { type BenchKind, kindOf, type Suite } from './suite';
import { SUITES } from './suites/index';

const OPTIONS = {
  device: { type: 'string' },
  threads: { type: 'string' },
  quick: { type: 'boolean', default: false },
  json: { type: 'string' },
  resume: { type: 'boolean', default: false },
  check: { type: 'boolean', default: false },
  model: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

/** The other commands. Each is loaded when it is called. */
const COMMANDS: Record<string, { description: string; run: (argv: string[]) => Promise<number> }> = {
  compare: {
    description: 'compare A B: the figures that differ between two results by more than their spread',
    run: async (argv) => (await import('./compare.js')).compareReports(argv),
  },
  report: {
    description: 'report FILE: an HTML page of a result, with tables and plots',
    run: async (argv) => (await import('./report.js')).writeReport(argv),
  },
  step: {
    description: 'a decode step on an H200, by arithmetic, or measured if there is a GPU; --help lists its options',
    run: async (argv) => (await import('./step.js')).runStep(argv),
  },
  peers: {
    description: 'the same work by other programs, in the same run (only in a clone)',
    run: async (argv) => {
      if (!isInCheckout('peers')) return wrongUse('peers can only be measured in a clone of the repository');
      return (await import('./peers/main.js')).runPeers(argv);
    },
  },
  counters: {
    description:
      'bytes, bank conflicts and tensor core instructions of the CUDA kernels, on the emulated device (only in a clone)',
    run: async (argv) => {
      if (!isInCheckout('counters')) return wrongUse('counters can only be measured in a clone of the repository');
      return (await import('./counters.js')).runCounters(argv);
    },
  },
};

/** The package does not have the parts of the bench that an installation cannot run. */
function isInCheckout(part: string): boolean {
  return ['', '.js', '.ts'].some((ending) => fs.existsSync(path.join(__dirname, part + ending)));
}

function usage(): string {
  const list = (entries: [string, { description: string }][]): string =>
    entries.map(([name, { description }]) => `  ${name.padEnd(14)} ${description}`).join('\n');
  return `Usage: bench SUITE [options], bench --quick [options], bench COMMAND ...

Suites:
${list(Object.entries(SUITES))}

Commands:
${list(Object.entries(COMMANDS))}

Options:
  --device ID    the device to measure (default: the first usable GPU, else the CPU)
  --threads N    threads of the CPU device (default: the CPUs that it may use)
  --quick        fewer shapes and samples; without a suite: all suites of the device, in about a minute
  --json FILE    write the result as JSON to FILE (default in a clone: bench/results/SUITE.json, or
                 build/bench/SUITE.json with --quick; else diffqkv-bench-SUITE.json)
  --resume       keep the figures in that file, and measure the rest
  --check        exit status 1 if a target is missed or something could not be measured
  --model NAME   for suite model: sigma-1.5b (default), sigma-10b or a checkpoint directory
  -h, --help     print this text

Ctrl-C stops a run and writes what has been measured; --resume continues it.`;
}

function wrongUse(message: string): number {
  process.stderr.write(`bench: ${message}\n\n${usage()}\n`);
  return 1;
}

/** The requested device, or the first usable GPU, or the CPU. If it cannot be measured, a text with the reason. */
function chooseDevice(id: string | undefined, kinds: readonly BenchKind[]): DeviceInfo | string {
  const devices = listDevices();
  const canMeasure = (info: DeviceInfo) => info.usable && kinds.includes(kindOf(info));
  const shown = kinds.filter((kind) => kind !== 'trial').join(', ');
  if (id === undefined || id === 'auto') {
    const of = (kind: string) => devices.find((info) => info.kind === kind && canMeasure(info));
    const reason = devices.find(({ usable }) => !usable)?.reason;
    return of('cuda') ?? of('cpu') ?? `no usable device of kind ${shown}${reason ? `: ${reason}` : ''}`;
  }
  const named = devices.filter((info) => info.id === id || (id === 'cuda' && info.kind === 'cuda'));
  const found = named.find(canMeasure) ?? named[0];
  if (found === undefined) return `there is no device '${id}', only ${devices.map((info) => info.id).join(', ')}`;
  if (!found.usable) return `device ${id} cannot be used: ${found.reason}`;
  return canMeasure(found) ? found : `it can measure ${shown}, not '${id}'`;
}

/**
 * Runs one suite, all suites or a command. Resolves to the exit status: 0; 1 for wrong arguments and, with --check, if a
 * target is missed or a cell is skipped; 130 if the run is stopped.
 */
export async function runBench(argv: string[]): Promise<number> {
  const command = argv[0] !== undefined && Object.hasOwn(COMMANDS, argv[0]) ? COMMANDS[argv[0]] : undefined;
  if (command !== undefined) return command.run(argv.slice(1));
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(argv);
  } catch (error) {
    return wrongUse((error as Error).message);
  }
  const { values, positionals } = parsed;
  if (values.help) {
    process.stdout.write(`${usage()}\n`);
    return 0;
  }
  const [name = 'all', ...rest] = positionals;
  if (positionals.length === 0 && !values.quick) return wrongUse('no suite is given');
  if (rest.length > 0) return wrongUse(`only one suite can be given, not also: ${rest.join(' ')}`);
  const all = positionals.length === 0;
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite === undefined && !all) return wrongUse(`there is no suite '${name}'`);

  const device = chooseDevice(values.device, suite?.kinds ?? ['cuda', 'cpu', 'trial']);
  if (typeof device === 'string') return wrongUse(all ? device : `suite ${name}: ${device}`);
  const suites: Record<string, Suite> =
    suite === undefined
      ? Object.fromEntries(Object.entries(SUITES).filter(([, { kinds }]) => kinds.includes(kindOf(device))))
      : { [name]: suite };
  const threads = values.threads === undefined ? undefined : Number(values.threads);
  if (threads !== undefined && (!Number.isInteger(threads) || threads < 1 || device.kind !== 'cpu'))
    return wrongUse(`--threads is ${values.threads} on device ${device.id}; it must be a number of threads of cpu`);
  if (threads !== undefined) device.details.threads = String(threads);
  warnIfBusy();
  const file = values.json === undefined ? defaultFile(name, device, values.quick) : path.resolve(values.json);
  const { quick, resume, model } = values;
  const stop = stopOnInterrupt();
  let result: Result;
  try {
    result = await runSuites({ name, suites, device, threads, quick, resume, model, file, argv, signal: stop.signal });
  } finally {
    stop.release();
  }
  return showOutcome(result, { file, check: values.check, figures: result.figures.filter(isHeadline) });
}

/** The grid of ceet has hundreds of figures; the table only shows totals and savings. */
function isHeadline({ group, at }: Figure): boolean {
  return group !== 'ceet' || /^(saving|total)/.test(String(at?.what));
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true });
}

function warnIfBusy(): void {
  const { loadAverage, cores } = describeMachine();
  if (loadAverage <= cores / 4) return;
  process.stderr.write(`other programs use this machine (load ${loadAverage} on ${cores} cores): expect noise\n`);
}

if (require.main === module) {
  runBench(process.argv.slice(2)).then(
    (status) => {
      process.exitCode = status;
    },
    (error: Error & { code?: string }) => {
      process.stderr.write(`bench: ${error.code === undefined ? '' : `${error.code}: `}${error.message}\n`);
      process.exitCode = 1;
    },
  );
}
