// The result file. It is written after every cell, so that a stopped run loses nothing. --resume reads it.
import * as fs from 'node:fs';
import * as path from 'node:path';

import type { DeviceInfo } from '../lib/index';
import type { Figure } from './figure';
import type { Limits } from './limits';
import { describeMachine, describeVersions, type Machine, type Versions } from './machine';

/** A cell that was measured or skipped. */
export interface CellRecord {
  name: string;
  seconds: number;
  /** The names of its figures. */
  figures: string[];
  note?: string;
  /** The reason why it was not measured. */
  skipped?: string;
}

export interface Result {
  suite: string;
  command: string;
  date: string;
  seconds: number;
  /** False while cells are missing; --resume measures them. */
  complete: boolean;
  quick: boolean;
  /** For suite model: the preset or checkpoint. */
  model?: string;
  machine: Machine;
  versions: Versions;
  commit: string | null;
  setup: Record<string, unknown>;
  device: DeviceInfo;
  ceilings: Partial<Limits> & Record<string, unknown>;
  cells: CellRecord[];
  figures: Figure[];
}

export function newResult(
  suite: string,
  argv: readonly string[],
  quick: boolean,
  device: DeviceInfo,
  model?: string,
): Result {
  const versions = describeVersions();
  return {
    suite,
    command: ['bench', ...argv].join(' '),
    date: new Date().toISOString(),
    seconds: 0,
    complete: false,
    quick,
    ...(model === undefined ? {} : { model }),
    machine: describeMachine(),
    versions,
    commit: versions.commit,
    setup: {},
    device: { ...device },
    ceilings: {},
    cells: [],
    figures: [],
  };
}

/** Adds the measurements of an earlier run. Throws if that run was of another machine, version or suite. */
export function resumeFrom(fresh: Result, before: Result): Result {
  const facts = ({ suite, quick, model, commit, versions, device, machine }: Result): Record<string, unknown> => ({
    suite,
    quick,
    model,
    commit,
    changes: versions.changes,
    version: versions.diffqkv,
    device: `${device.id} (${device.name}) ${JSON.stringify((device as { details?: unknown }).details ?? {})}`,
    machine: `${machine.cpu} with ${machine.cores} cores, ${machine.os}`,
  });
  const [now, then] = [facts(fresh), facts(before)];
  for (const [what, value] of Object.entries(now)) {
    if (value !== then[what])
      throw new Error(
        `cannot resume: the file has ${what} ${then[what]}, and this run ${value}; run without --resume to measure everything again`,
      );
  }
  const { cells, figures, setup, seconds, date, ceilings } = before;
  const done = cells.filter(({ skipped }) => skipped === undefined); // a skipped cell may fit into memory now
  const kept = new Set(done.flatMap((cell) => cell.figures));
  return {
    ...fresh,
    cells: done,
    figures: figures.filter(({ name }) => kept.has(name)),
    setup,
    seconds,
    ceilings: { ...fresh.ceilings, resumedFrom: { date, ceilings } },
  };
}

export function readResult(file: string): Result {
  const result = JSON.parse(fs.readFileSync(file, 'utf8')) as Result;
  if (!Array.isArray(result.cells) || !Array.isArray(result.figures))
    throw new Error(`${file} is not a result that can be resumed`);
  return result;
}

/** Throws if the result could not be written. Called before the measurements. */
export function checkWritable(file: string): void {
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.accessSync(path.dirname(file), fs.constants.W_OK);
}

/** Replaces the file atomically. */
export function writeResult(file: string, result: Result): void {
  const partial = `${file}.partial-${process.pid}`;
  fs.writeFileSync(partial, `${JSON.stringify(result, null, 2)}\n`);
  fs.renameSync(partial, file);
}
