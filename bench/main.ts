// The harness: `npm run bench -- SUITE [options]`. A suite measures on lib's public names alone.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type DeviceInfo, listDevices } from '../lib/index';
import type { Figure } from './figure';
import { describeMachine, projectRoot } from './machine';
import type { Result } from './result';
import { runSuites } from './run';
import { type BenchKind, kindOf, type Suite } from './suite';
import { SUITES } from './suites/index';
import { formatTable } from './table';

const OPTIONS = {
  device: { type: 'string' },
  quick: { type: 'boolean', default: false },
  json: { type: 'string' },
  resume: { type: 'boolean', default: false },
  check: { type: 'boolean', default: false },
  model: { type: 'string' },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

/** What else there is; each is loaded when it is called. */
const COMMANDS: Record<string, { description: string; run: (argv: string[]) => Promise<number> }> = {
  compare: {
    description: 'compare A B: what moved between two results, beyond its spread',
    run: async (argv) => (await import('./compare.js')).compareReports(argv),
  },
  report: {
    description: 'report FILE: a page with tables and plots out of a result',
    run: async (argv) => (await import('./report.js')).writeReport(argv),
  },
  peers: {
    description: 'the same work by other programs, in the same run',
    run: async (argv) => {
      // They are no part of the package.
      if (!fs.existsSync(path.join(__dirname, 'peers'))) return wrongUse('peers are measured only in a checkout');
      return (await import('./peers/main.js')).runPeers(argv);
    },
  },
  counters: {
    description:
      "bytes moved, bank conflicts and tensor core instructions of the CUDA kernels, on the tests' emulation",
    run: async (argv) => {
      // Part of a checkout, like the peers: it needs the tests' module.
      if (!fs.existsSync(path.join(__dirname, 'counters.js'))) return wrongUse('only a checkout has counters');
      return (await import('./counters.js')).runCounters(argv);
    },
  },
};

function usage(): string {
  const list = (entries: [string, { description: string }][]): string =>
    entries.map(([name, { description }]) => `  ${name.padEnd(14)} ${description}`).join('\n');
  return `Usage: bench SUITE [options], bench --quick [options], bench COMMAND ...

Suites:
${list(Object.entries(SUITES))}

Commands:
${list(Object.entries(COMMANDS))}

Options:
  --device ID    the device to measure (default: the first GPU that can be used, else the CPU)
  --quick        fewer shapes and samples; without a suite all suites of the device, within a minute
  --json FILE    where the result goes as JSON (default: bench/results/SUITE.json of a checkout; of a quick run
                 build/bench/SUITE.json; else diffqkv-bench-SUITE.json here)
  --resume       take what that file has already, and measure the rest
  --check        exit status 1 when a target is missed, or something could not be measured
  --model NAME   of suite model: sigma-1.5b (default), sigma-10b or a checkpoint directory
  -h, --help     this text

Ctrl-C stops a run: what has been measured is written, and --resume goes on from there.`;
}

function wrongUse(message: string): number {
  process.stderr.write(`bench: ${message}\n\n${usage()}\n`);
  return 1;
}

/** The device asked for, or the first usable GPU, or the CPU; a text says what is wrong with it. */
function chooseDevice(id: string | undefined, kinds: readonly BenchKind[]): DeviceInfo | string {
  const devices = listDevices();
  const canMeasure = (info: DeviceInfo) => info.usable && kinds.includes(kindOf(info));
  const shown = kinds.filter((kind) => kind !== 'trial').join(', ');
  if (id === undefined || id === 'auto') {
    const of = (kind: string) => devices.find((info) => info.kind === kind && canMeasure(info));
    const reason = devices.find(({ usable }) => !usable)?.reason;
    return of('cuda') ?? of('cpu') ?? `none of ${shown} can be used here${reason ? `: ${reason}` : ''}`;
  }
  const named = devices.filter((info) => info.id === id || (id === 'cuda' && info.kind === 'cuda'));
  const found = named.find(canMeasure) ?? named[0];
  if (found === undefined) return `no device '${id}': there are ${devices.map((info) => info.id).join(', ')}`;
  if (!found.usable) return `device ${id} cannot be used: ${found.reason}`;
  return canMeasure(found) ? found : `it measures ${shown}, not '${id}'`;
}

function defaultFile(name: string, device: DeviceInfo, quick: boolean): string {
  const results = path.join(projectRoot, 'bench', 'results');
  const suffix = device.kind === 'cpu' || name === device.kind ? '' : `-${device.kind}`;
  if (!fs.existsSync(results)) return path.resolve(`diffqkv-bench-${name}${suffix}.json`);
  return path.join(quick ? path.join(projectRoot, 'build', 'bench') : results, `${name}${suffix}.json`);
}

/**
 * Runs one suite, every suite or a command. Resolves to the exit status: 0; 1 for wrong arguments and, with --check, for a missed
 * target or a cell that was skipped; 130 when it was stopped.
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
  if (positionals.length === 0 && !values.quick) return wrongUse('which suite?');
  if (rest.length > 0) return wrongUse(`one suite at a time, but also got: ${rest.join(' ')}`);
  const all = positionals.length === 0;
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite === undefined && !all) return wrongUse(`no suite is named '${name}'`);

  const device = chooseDevice(values.device, suite?.kinds ?? ['cuda', 'cpu', 'trial']);
  if (typeof device === 'string') return wrongUse(all ? device : `suite ${name}: ${device}`);
  const suites: Record<string, Suite> =
    suite === undefined
      ? Object.fromEntries(Object.entries(SUITES).filter(([, { kinds }]) => kinds.includes(kindOf(device))))
      : { [name]: suite };
  warnIfBusy();
  const file = values.json === undefined ? defaultFile(name, device, values.quick) : path.resolve(values.json);
  const { quick, resume, model } = values;
  const stop = stopOnInterrupt();
  let result: Result;
  try {
    result = await runSuites({ name, suites, device, quick, resume, model, file, argv, signal: stop.signal });
  } finally {
    stop.release();
  }
  process.stdout.write(`${formatTable(result.figures.filter(isHeadline))}\n`);
  for (const { name, skipped, note } of result.cells) {
    if (skipped !== undefined) process.stdout.write(`skipped: ${name}: ${skipped}\n`);
    if (note !== undefined) process.stdout.write(`${name}: ${note}\n`);
  }
  const shown = path.relative(process.cwd(), file) || file;
  process.stderr.write(`written to ${shown}; \`bench report ${shown}\` makes a page of it\n`);
  if (!result.complete) {
    process.stderr.write('stopped before the end: --resume goes on from here\n');
    return 130;
  }
  const missed = result.figures.filter(({ target, met }) => target !== null && met !== true);
  const skipped = result.cells.some((cell) => cell.skipped !== undefined);
  return values.check && (missed.length > 0 || skipped) ? 1 : 0;
}

/** The grid of ceet has hundreds of figures; its parts are for the plots. */
function isHeadline({ group, at }: Figure): boolean {
  return group !== 'ceet' || /^(saving|total)/.test(String(at?.what));
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true });
}

function warnIfBusy(): void {
  const { loadAverage, cores } = describeMachine();
  if (loadAverage <= cores / 4) return;
  process.stderr.write(`other programs keep this machine busy (load ${loadAverage} on ${cores} cores): expect noise\n`);
}

/** The first Ctrl-C lets the run end in order; a second one ends it at once. */
function stopOnInterrupt(): { signal: AbortSignal; release: () => void } {
  const controller = new AbortController();
  const onInterrupt = (): void => {
    if (controller.signal.aborted) process.exit(130);
    process.stderr.write('\nstopping: what has been measured is being written\n');
    controller.abort();
  };
  process.on('SIGINT', onInterrupt);
  return { signal: controller.signal, release: () => process.removeListener('SIGINT', onInterrupt) };
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
