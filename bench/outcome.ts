// What a run leaves: its file, what it prints and its exit status.
import * as fs from 'node:fs';
import * as path from 'node:path';

import type { DeviceInfo } from '../lib/index';
import type { Figure } from './figure';
import { projectRoot } from './machine';
import { overLimitReason } from './report_result';
import type { Result } from './result';
import { formatTable } from './table';

/** The file of a result if --json does not name one. */
export function defaultFile(name: string, device: DeviceInfo, quick: boolean): string {
  const results = path.join(projectRoot, 'bench', 'results');
  const suffix = device.kind === 'cpu' || name === device.kind ? '' : `-${device.kind}`;
  if (!fs.existsSync(results)) return path.resolve(`diffqkv-bench-${name}${suffix}.json`);
  return path.join(quick ? path.join(projectRoot, 'build', 'bench') : results, `${name}${suffix}.json`);
}

/**
 * Prints the table of `figures`, notes, what was skipped and the file. Returns the exit status: 0; 130 if the run was
 * stopped; with `check`, 1 if a target is missed or a cell was skipped.
 */
export function showOutcome(
  result: Result,
  { file, check, figures = result.figures }: { file: string; check: boolean; figures?: readonly Figure[] },
): number {
  process.stdout.write(`${formatTable(figures)}\n`);
  const reasons = new Set(figures.map(overLimitReason).filter((reason) => reason !== null));
  for (const reason of reasons) process.stdout.write(`${reason}\n`);
  for (const { name, skipped, note } of result.cells) {
    if (skipped !== undefined) process.stdout.write(`skipped: ${name}: ${skipped}\n`);
    if (note !== undefined) process.stdout.write(`${name}: ${note}\n`);
  }
  const shown = path.relative(process.cwd(), file) || file;
  process.stderr.write(`written to ${shown}; \`bench report ${shown}\` makes a page of it\n`);
  if (!result.complete) {
    process.stderr.write('stopped before the end: --resume continues\n');
    return 130;
  }
  const missed = result.figures.filter(({ target, met }) => target !== null && met !== true);
  const skipped = result.cells.some((cell) => cell.skipped !== undefined);
  return check && (missed.length > 0 || skipped) ? 1 : 0;
}
