// `bench peers`: the CPU device against llama.cpp and onnxruntime, and a GPU against PyTorch, in one run.
import * as path from 'node:path';
import { parseArgs } from 'node:util';

import { type DeviceInfo, listDevices } from '../../lib/index';
import { describeMachine, projectRoot } from '../machine';
import { checkWritable, newResult, type Result, writeResult } from '../result';
import { formatTable } from '../table';
import { measureGroupQueryAttention } from './gqa';
import { measureLlama } from './llama';
import { measurePeer, type Peer, type PeersContext, patienceLeftMs, RunLimits, setPatience } from './run';
import { measureTorch } from './torch';

const RESULTS = path.join('bench', 'results');
const SCRATCH = path.join('build', 'bench');

const OPTIONS = {
  only: { type: 'string' },
  python: { type: 'string' },
  quick: { type: 'boolean', default: false },
  tiny: { type: 'boolean', default: false },
  json: { type: 'string' },
  check: { type: 'boolean', default: false },
  help: { type: 'boolean', short: 'h', default: false },
} as const;

const PEERS: Record<string, { name: string; measure(context: PeersContext, python?: string): Promise<string> }> = {
  llama: { name: 'llama.cpp', measure: measureLlama },
  gqa: { name: 'onnxruntime', measure: measureGroupQueryAttention },
  torch: { name: 'PyTorch', measure: measureTorch },
};

const USAGE = `Usage: bench peers [options]

Measures diffqkv and other programs on the same machine, alternating, with equal numbers of threads.
\`node bench/peers/install.mjs\` installs the other programs.

Options:
  --only NAME    one of ${Object.keys(PEERS).join(', ')}
  --python PATH  a Python with PyTorch: attention on the GPU (without one on the CPU, to show that it runs)
  --quick        fewer layers and samples
  --tiny         sizes too small for figures, to show that everything runs
  --json FILE    write the result as JSON to FILE (default: bench/results/peers.json; for a part,
                 build/bench/peers.json)
  --check        exit status 1 if a target is missed or a peer is missing (PyTorch: only with --only or --python)
  -h, --help     print this text`;

function wrongUse(message: string): number {
  process.stderr.write(`bench: ${message}\n\n${USAGE}\n`);
  return 1;
}

/** Resolves to the exit status: 0, or 1 for wrong arguments and, with --check, for a missed target or a missing peer. */
export async function runPeers(argv: string[]): Promise<number> {
  let values: ReturnType<typeof parse>['values'];
  try {
    ({ values } = parse(argv));
  } catch (error) {
    return wrongUse((error as Error).message);
  }
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  const only = values.only;
  if (only !== undefined && !Object.hasOwn(PEERS, only)) return wrongUse(`no peer is named '${only}'`);

  if (values.tiny) setPatience(0);
  const device = listDevices().find(({ id }) => id === 'cpu') as DeviceInfo;
  const isWhole = !values.quick && !values.tiny && only === undefined;
  const started = Date.now();
  const result: Result & { peers: Peer[] } = {
    ...newResult('peers', ['peers', ...argv], values.quick || values.tiny, device),
    peers: [],
  };
  const threads = Number(device.details.threads ?? result.machine.cores);
  const { figures, peers, setup } = result;
  setup.threads = threads;
  const progress = (line: string) => process.stderr.write(`${line}\n`);
  const limits = new RunLimits(progress);
  const context: PeersContext = {
    quick: values.quick,
    tiny: values.tiny,
    threads,
    progress,
    figures,
    peers,
    setup,
    limits,
  };
  const file = values.json
    ? path.resolve(values.json)
    : path.join(projectRoot, isWhole ? RESULTS : SCRATCH, 'peers.json');
  checkWritable(file);
  const save = (): void => {
    if (figures.length === 0) return; // keep an older result until something is measured
    result.seconds = Math.round((Date.now() - started) / 1000);
    Object.assign(setup, { loadAverageAfter: describeMachine().loadAverage, patienceLeftMs: patienceLeftMs() });
    Object.assign(result.ceilings, limits.all());
    writeResult(file, result);
  };
  const stop = (): void => {
    save();
    process.exit(130); // removes the temporary folders and ends the processes of the peers
  };
  const signals = ['SIGINT', 'SIGTERM'] as const;
  for (const signal of signals) process.once(signal, stop);
  try {
    for (const [key, { name, measure }] of Object.entries(PEERS)) {
      if (only !== undefined && only !== key) continue;
      await measurePeer(context, name, () => measure(context, values.python));
      save();
    }
    result.complete = true;
    save();
  } finally {
    limits.close();
    for (const signal of signals) process.removeListener(signal, stop);
  }
  if (figures.length > 0) process.stdout.write(`${formatTable(figures)}\n`);
  for (const { name, version, status, reason } of peers)
    process.stdout.write(`${name}: ${status}${version ? ` (${version})` : ''}${reason ? `: ${reason}` : ''}\n`);
  const shown = path.relative(process.cwd(), file) || file;
  progress(figures.length > 0 ? `written to ${shown}` : `nothing was measured: ${shown} is left as it is`);
  if (!values.check) return 0;
  const asked = Object.entries(PEERS).filter(([key]) => key === only || key !== 'torch' || values.python !== undefined);
  const missing = peers.filter(
    ({ name, status }) => status === 'missing' && asked.some(([, peer]) => peer.name === name),
  );
  if (missing.length > 0) progress(`--check fails: missing: ${missing.map(({ name }) => name).join(', ')}`);
  const missed = figures.some(({ target, met }) => target !== null && met !== true);
  return missed || missing.length > 0 ? 1 : 0;
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS });
}
