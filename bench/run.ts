// Runs suites: opens the device, measures its limits, then each cell, and writes the result file after each cell.
import * as fs from 'node:fs';

import { type DeviceInfo, openDevice } from '../lib/index';
import { Ceilings } from './ceilings';
import type { Figure } from './figure';
import { CpuLimits, gpuLimits, NO_LIMITS } from './limits';
import { Progress } from './progress';
import { type CellRecord, checkWritable, newResult, type Result, readResult, resumeFrom, writeResult } from './result';
import { type Bench, type Cell, isTrial, type Plan, Stopped, type Suite } from './suite';
import { TensorPool } from './tensors';

export interface RunOptions {
  /** Name of the result: that of the suite, or 'all'. */
  name: string;
  suites: Record<string, Suite>;
  device: DeviceInfo;
  quick: boolean;
  resume: boolean;
  file: string;
  model?: string;
  /** The arguments, for the result file. */
  argv: readonly string[];
  /** Whether to measure the limits; default true. */
  ceilings?: boolean;
  /** Threads of the CPU device. */
  threads?: number;
  /** Aborted when the user stops the run. */
  signal: AbortSignal;
}

/** A cell and the name of its suite. */
interface Task extends Cell {
  suite: string;
}

export async function runSuites(options: RunOptions): Promise<Result> {
  const { name, quick, file, argv, resume, signal } = options;
  const started = performance.now();
  let result = newResult(name, argv, quick, options.device, options.model);
  if (resume && fs.existsSync(file)) result = resumeFrom(result, readResult(file));
  const secondsBefore = result.seconds;
  checkWritable(file);
  const { threads } = options;
  const device = await openDevice(options.device.id as Parameters<typeof openDevice>[0], { threads });
  const wanted = options.ceilings !== false && !isTrial(device);
  const ceilings = wanted && device.info.kind === 'cpu' ? new Ceilings(device) : null;
  const cpuLimits = ceilings && new CpuLimits(ceilings);
  const pool = new TensorPool(device);
  const plans: [string, Plan][] = [];
  let progress = new Progress([]);
  const bench: Bench = {
    device,
    quick,
    ceilings,
    pool,
    model: options.model,
    limits: NO_LIMITS,
    progress: (line) => progress.say(line),
    check() {
      if (signal.aborted) throw new Stopped();
    },
  };
  try {
    if (wanted) {
      bench.progress('measuring the limits of this device');
      if (device.info.kind === 'cuda') bench.limits = gpuLimits(device.id);
      await cpuLimits?.start(quick ? 2 : 5);
      bench.limits = cpuLimits?.now() ?? bench.limits;
    }
    if (wanted && bench.limits.readGbPerS === null)
      bench.progress('the limits of this device cannot be measured here, so its figures have none');
    Object.assign(result.ceilings, bench.limits);

    for (const [suite, { plan }] of Object.entries(options.suites)) plans.push([suite, await plan(bench)]);
    const single = plans.length === 1;
    for (const [suite, { setup }] of plans) Object.assign(result.setup, single ? setup : { [suite]: setup });

    const label = (task: Task): string => (single ? task.name : `${task.suite}: ${task.name}`);
    const known = new Set(result.cells.map((cell) => cell.name));
    const tasks = plans
      .flatMap(([suite, { cells }]) => cells.map((cell): Task => ({ ...cell, suite })))
      .filter((task) => !known.has(label(task)));
    progress = new Progress(tasks.map((task) => ({ ...task, name: label(task) })));

    const measured = [...result.figures];
    let done = 0;
    const save = (): void => {
      const derived = plans.flatMap(([, { derive }]) => derive?.(measured) ?? []);
      result.figures = [...measured, ...derived];
      result.seconds = Math.round(secondsBefore + (performance.now() - started) / 1000);
      Object.assign(result.ceilings, cpuLimits?.all());
      writeResult(file, result);
    };
    try {
      for (const [index, task] of tasks.entries()) {
        bench.check();
        progress.start(index);
        await cpuLimits?.refresh(quick ? 3 : 0);
        bench.limits = cpuLimits?.now() ?? bench.limits;
        const { record, figures } = await runTask(task, label(task), bench, result, single);
        if (record.skipped !== undefined) progress.say(`skipped: ${label(task)}: ${record.skipped}`);
        result.cells.push(record);
        done++;
        measured.push(...figures);
        progress.done(index, record.seconds);
        save();
        const last = tasks[index + 1]?.suite !== task.suite;
        if (last) await plans.find(([suite]) => suite === task.suite)?.[1].dispose?.();
      }
      // Again, to show how much the limits changed during the run. Those of the CPU are measured between the cells.
      if (tasks.length > 0 && device.info.kind === 'cuda') result.ceilings.after = gpuLimits(device.id);
      result.complete = true;
    } catch (error) {
      if (!(error instanceof Stopped)) throw error;
    } finally {
      progress.end();
      if (done > 0 || tasks.length === 0) save(); // a run that measured nothing leaves the file as it was
    }
    return result;
  } finally {
    for (const [, plan] of plans) await plan.dispose?.();
    pool.trim(0);
    device.dispose();
  }
}

async function runTask(
  task: Task,
  name: string,
  { pool }: Bench,
  result: Result,
  single: boolean,
): Promise<{ record: CellRecord; figures: Figure[] }> {
  const capacity = pool.capacity();
  const skip = (why: string) => ({ record: { name, seconds: 0, figures: [], skipped: why }, figures: [] });
  if (task.bytes > capacity)
    return skip(`it needs ${gigabytes(task.bytes)} of memory, and ${gigabytes(capacity)} are available`);
  pool.trim(capacity - task.bytes);
  const start = performance.now();
  try {
    const { figures, setup, ceilings, note, skipped } = await task.run();
    if (skipped !== undefined) return skip(skipped);
    const seconds = Math.round((performance.now() - start) / 10) / 100;
    if (setup !== undefined) result.setup[single ? task.name : name] = setup;
    if (ceilings !== undefined) result.ceilings[name] = ceilings;
    return { record: { name, seconds, figures: figures.map((figure) => figure.name), note }, figures };
  } catch (error) {
    const { code, message } = error as Error & { code?: string };
    if (code !== 'ERR_OUT_OF_MEMORY') throw error;
    pool.trim(0);
    return skip(message);
  }
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
