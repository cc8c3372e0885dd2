// The harness: `npm run bench -- SUITE [options]`. A suite measures on lib's public names alone.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import type { Suite } from './figure';
import { describeMachine, describeVersions, projectRoot } from './machine';
import { cpuSuite } from './suites/cpu';
import { cudaSuite } from './suites/cuda';
import { formatTable } from './table';

const SUITES: Record<string, Suite> = { cpu: cpuSuite, cuda: cudaSuite };

const OPTIONS = {
  device: { type: 'string' },
  quick: { type: 'boolean', default: false },
  json: { type: 'string' },
  check: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

function usage(): string {
  const suites = Object.entries(SUITES).map(([name, { description }]) => `  ${name.padEnd(14)} ${description}`);
  return `Usage: bench SUITE [options]

Suites:
${suites.join('\n')}

Options:
  --device ID    the device to measure (default: the first that the suite can measure)
  --quick        fewer layers and samples: about a minute
  --json FILE    where the result goes as JSON (default: bench/results/SUITE.json)
  --check        exit status 1 when a target is missed
  -h, --help     this text`;
}

function wrongUse(message: string): number {
  process.stderr.write(`bench: ${message}\n\n${usage()}\n`);
  return 1;
}

/** Runs one suite. Resolves to the exit status: 0, or 1 for wrong arguments and, with --check, for a missed target. */
export async function runBench(argv: string[]): Promise<number> {
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
  const [name, ...rest] = positionals;
  if (name === undefined) return wrongUse('which suite?');
  if (rest.length > 0) return wrongUse(`one suite at a time, but also got: ${rest.join(' ')}`);
  const suite = Object.hasOwn(SUITES, name) ? SUITES[name] : undefined;
  if (suite === undefined) return wrongUse(`no suite is named '${name}'`);

  const deviceId = values.device ?? suite.devices[0] ?? 'auto';
  if (!suite.devices.includes(deviceId))
    return wrongUse(`suite ${name} measures ${suite.devices.join(', ')}, not '${deviceId}'`);

  const started = new Date();
  const machine = describeMachine();
  const progress = (line: string) => process.stderr.write(`${line}\n`);
  if (machine.loadAverage > machine.cores / 4) {
    progress(
      `other programs keep this machine busy (load ${machine.loadAverage} on ${machine.cores} cores): expect noise`,
    );
  }
  const measured = await suite.run({ deviceId, quick: values.quick, progress });
  const result = {
    suite: name,
    command: ['bench', ...argv].join(' '),
    date: started.toISOString(),
    seconds: Math.round((Date.now() - started.getTime()) / 1000),
    machine,
    versions: describeVersions(),
    ...measured,
  };
  process.stdout.write(`${formatTable(measured.figures)}\n`);
  const file =
    values.json === undefined ? path.join(projectRoot, 'bench', 'results', `${name}.json`) : path.resolve(values.json);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.writeFileSync(file, `${JSON.stringify(result, null, 2)}\n`);
  progress(`written to ${path.relative(process.cwd(), file) || file}`);
  const missed = measured.figures.filter(({ target, met }) => target !== null && met !== true);
  return values.check && missed.length > 0 ? 1 : 0;
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true });
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
