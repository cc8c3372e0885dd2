// `bench counters [--check]`: bytes, bank conflicts and tensor core instructions of each CUDA kernel on the device `emulated`
// of the test module, and the least that its operator needs. The counts are the same in every run and on every machine, so
// that a comparison with the committed table finds a regression without a GPU.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type Device, type DeviceId, listDevices, openDevice } from '../lib/index';
import { type CountedCase, TensorSet, type Work } from './counters_case';
import { countedCases } from './counters_cases';
import { projectRoot } from './machine';
import { alignTable } from './table';

const MMA_FLOPS = 2 * 16 * 8 * 16; // m16n8k16
const SECTOR_BYTES = 32;
const LEEWAY = 0.005; // of bytes and sectors, for a few words of bookkeeping

/** Work done by kernels since counting began. */
export interface DeviceCounters {
  /** Bytes read from global memory. Bytes that several lanes of a warp read in one access count once. */
  bytesRead: number;
  /**
   * Bytes of the 32-byte sectors that a launch reads, each sector once, summed over launches: what memory sends if the L2
   * cache keeps what a launch has read.
   */
  distinctBytesRead: number;
  /** Bytes written to global memory, counted in the same way. */
  bytesWritten: number;
  /** 32-byte sectors of global memory that were read or written, counted per warp access. */
  sectors: number;
  /** Passes over the banks of shared memory beyond those that an access needs for its bytes. */
  bankConflicts: number;
  /** m16n8k16 matrix instructions executed by a warp: 4096 FLOPs each. */
  mmaOps: number;
}

/** What the tests' module exports as `emulation`, as far as it counts. The counters are the process's; kernels are slower meanwhile. */
export interface Counting {
  /** Counts from 0. Synchronize the device first, or queued kernels count too. */
  startCounting(): void;
  stopCounting(): void;
  /** Null while nothing is counted. */
  counters(): DeviceCounters | null;
}

/** The native module is loaded already: require() returns its exports again. */
const counting = (): Counting => (require(process.env.DIFFQKV_MODULE as string) as { emulation: Counting }).emulation;

export interface CounterRow extends DeviceCounters {
  kernel: string;
  shape: string;
  ideal: Pick<DeviceCounters, 'bytesRead' | 'distinctBytesRead' | 'bytesWritten' | 'sectors' | 'mmaOps'>;
}

const COUNTERS = [
  { key: 'bytesRead', name: 'bytes read', leeway: LEEWAY },
  { key: 'distinctBytesRead', name: 'distinct bytes read', leeway: LEEWAY },
  { key: 'bytesWritten', name: 'bytes written', leeway: LEEWAY },
  { key: 'sectors', name: 'sectors', leeway: LEEWAY },
  { key: 'bankConflicts', name: 'bank conflicts', leeway: 0 },
  { key: 'mmaOps', name: 'mma instructions', leeway: 0 },
] as const;

function idealOf({ bytesRead, bytesWritten, flops }: Work): CounterRow['ideal'] {
  return {
    bytesRead,
    distinctBytesRead: bytesRead,
    bytesWritten,
    sectors: (bytesRead + bytesWritten) / SECTOR_BYTES,
    mmaOps: flops / MMA_FLOPS,
  };
}

async function count(device: Device, { kernel, shape, work, prepare }: CountedCase): Promise<CounterRow> {
  const tensors = new TensorSet(device);
  try {
    const call = prepare(tensors);
    await device.synchronize();
    counting().startCounting();
    await call();
    await device.synchronize();
    const counters = counting().counters();
    if (counters === null) throw new Error('the emulated device did not count');
    return { kernel, shape, ...counters, ideal: idealOf(work) };
  } finally {
    tensors.dispose();
  }
}

const nameOf = ({ kernel, shape }: Pick<CounterRow, 'kernel' | 'shape'>): string => `${kernel} ${shape}`;

/** The rows of all cases, or of those whose names contain `only`. */
export async function measureCounters({
  only = '',
  progress = () => {},
}: {
  only?: string;
  progress?: (line: string) => void;
} = {}): Promise<CounterRow[]> {
  const device = await openDevice('emulated' as DeviceId);
  try {
    const rows: CounterRow[] = [];
    for (const one of countedCases().filter((one) => nameOf(one).includes(only))) {
      progress(nameOf(one));
      rows.push(await count(device, one));
    }
    return rows;
  } finally {
    counting().stopCounting();
    device.dispose();
  }
}

/** One line for each count in `measured` that is worse or better than in the committed table. */
export function compareCounters(
  committed: readonly CounterRow[],
  measured: readonly CounterRow[],
): { worse: string[]; better: string[] } {
  const worse: string[] = [];
  const better: string[] = [];
  const before = new Map(committed.map((row) => [nameOf(row), row]));
  for (const now of measured) {
    const name = nameOf(now);
    const then = before.get(name);
    before.delete(name);
    if (then === undefined) {
      worse.push(`${name}: not in the committed table`);
      continue;
    }
    for (const { key, name: counter, leeway } of COUNTERS) {
      const [a, b] = [then[key], now[key]];
      const change = a === 0 ? '' : ` (${b > a ? '+' : ''}${((b / a - 1) * 100).toFixed(2)} %)`;
      const line = `${name}: ${counter} ${a} -> ${b}${change}`;
      if (!(b <= a * (1 + leeway))) worse.push(line);
      else if (b < a * (1 - leeway)) better.push(line);
    }
  }
  for (const name of before.keys()) worse.push(`${name}: in the committed table, but no longer counted`);
  return { worse, better };
}

const times = (value: number, ideal: number): string => (ideal === 0 ? '' : `x${(value / ideal).toFixed(2)}`);

/** One line for each row, with the ratio of each count to the ideal; no newline at the end. */
export function formatCounters(rows: readonly CounterRow[]): string {
  const header = ['kernel', 'shape', 'read', '', 'distinct', '', 'written', '', 'sectors', '', 'conflicts', 'mma', ''];
  const cells = rows.map((row) => {
    const beside = (key: keyof CounterRow['ideal']) => [String(row[key]), times(row[key], row.ideal[key])];
    return [
      row.kernel,
      row.shape,
      ...beside('bytesRead'),
      ...beside('distinctBytesRead'),
      ...beside('bytesWritten'),
      ...beside('sectors'),
      String(row.bankConflicts),
      ...beside('mmaOps'),
    ];
  });
  return alignTable([header, ...cells], (column) => column < 2);
}

const USAGE = `Usage: bench counters [options]

Counts bytes, bank conflicts and tensor core instructions of each CUDA kernel on the device 'emulated'
of the test module. Beside each count is its ratio to the least that the operator needs.

Options:
  --json FILE    the table as JSON (default: bench/results/counters.json); --check reads it instead of writing it
  --check        exit status 1 if counts are worse than in the table: bytes or sectors by more than ${LEEWAY * 100} %,
                 bank conflicts or mma instructions by any
  --only TEXT    only kernels and shapes with TEXT in their name; only writes a file if --json names one
  -h, --help     print this text
`;

function parse(args: string[]) {
  const options = {
    json: { type: 'string' },
    check: { type: 'boolean', default: false },
    only: { type: 'string' },
    help: { type: 'boolean', short: 'h', default: false },
  } as const;
  return parseArgs({ args, options }).values;
}

const tell = (line: string): void => void process.stderr.write(`${line}\n`);

/** Resolves to the exit status: 1 for wrong arguments, without the device, and with --check if counts are worse. */
export async function runCounters(argv: string[]): Promise<number> {
  let values: ReturnType<typeof parse>;
  try {
    values = parse(argv);
  } catch (error) {
    tell(`bench counters: ${(error as Error).message}\n\n${USAGE}`);
    return 1;
  }
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  if (!listDevices().some(({ id }) => id === 'emulated')) {
    tell(
      "bench counters: this module has no device 'emulated': run `npm run build:test`, and set DIFFQKV_MODULE to the",
    );
    tell('absolute path of build-cmake/diffqkv-test.node (the test module)');
    return 1;
  }
  const { check, only } = values;
  const file = path.resolve(values.json ?? path.join(projectRoot, 'bench', 'results', 'counters.json'));
  const shown = path.relative(process.cwd(), file) || file;
  if (check && !fs.existsSync(file)) {
    tell(`bench counters: ${shown}: there is no such table to compare with`);
    return 1;
  }
  const rows = await measureCounters({ only, progress: tell });
  if (rows.length === 0) {
    tell(`bench counters: no kernel and shape has '${only}' in its name`);
    return 1;
  }
  process.stdout.write(`${formatCounters(rows)}\n`);
  if (check) return report(readTable(file, only), rows, shown);
  if (only !== undefined && values.json === undefined) return 0;
  fs.mkdirSync(path.dirname(file), { recursive: true });
  // One line for each row, so that a diff names the kernels.
  const lines = rows.map((row) => `    ${JSON.stringify(row)}`).join(',\n');
  fs.writeFileSync(file, `{\n  "suite": "counters",\n  "device": "emulated",\n  "rows": [\n${lines}\n  ]\n}\n`);
  tell(`written to ${shown}`);
  return 0;
}

function readTable(file: string, only = ''): CounterRow[] {
  const { rows } = JSON.parse(fs.readFileSync(file, 'utf8')) as { rows: CounterRow[] };
  return rows.filter((row) => nameOf(row).includes(only));
}

function report(committed: CounterRow[], measured: CounterRow[], file: string): number {
  const { worse, better } = compareCounters(committed, measured);
  for (const line of worse) tell(`worse: ${line}`);
  for (const line of better) tell(`better: ${line}`);
  if (better.length > 0) tell(`better than ${file}: commit the new table (\`bench counters\` writes it)`);
  if (worse.length > 0) {
    tell(`worse than ${file}: fix the kernels, or commit the new table and say why if the change is intended`);
    return 1;
  }
  tell(`no worse than ${file}: ${measured.length} kernels and shapes`);
  return 0;
}
