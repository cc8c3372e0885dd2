// Result files, read back: what `report` and `compare` have in common.
import * as fs from 'node:fs';
import type { Figure } from './figure';
import type { Machine, Versions } from './machine';

/** A result file. Older files lack what is optional here. */
export interface Result {
  file: string;
  suite: string;
  command: string;
  date: string;
  seconds?: number;
  machine: Machine;
  versions: Versions;
  device?: Record<string, unknown> | string;
  commit?: string | null;
  /** false: the run was stopped before its end. */
  complete?: boolean;
  quick?: boolean;
  /** What was to be measured; `skipped` says why one of them was not. */
  cells?: { name: string; skipped?: string; note?: string }[];
  peers?: { name: string; version?: string | null; status: 'measured' | 'missing'; reason?: string }[];
  setup?: Record<string, unknown>;
  ceilings?: Record<string, unknown>;
  figures: Figure[];
}

export function readResult(file: string): Result {
  let result: Result;
  try {
    result = JSON.parse(fs.readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${file} can't be read as a result of the bench: ${(error as Error).message}`);
  }
  if (!Array.isArray(result?.figures) || !result.machine || !result.versions)
    throw new Error(`${file} is no result of the bench: it must have figures, machine and versions`);
  return { ...result, file };
}

/** The table or plot that a figure belongs to. */
export const groupOf = (result: Result, figure: Figure): string => figure.group ?? result.suite;

/** 'NVIDIA H100 (cuda)', or what is known of it. */
export function deviceName({ device, machine }: Result): string {
  if (typeof device === 'string') return device === 'cpu' ? `${machine.cpu} (cpu)` : device;
  const { name, id } = device ?? {};
  return name === undefined ? machine.cpu : `${name}${id === undefined ? '' : ` (${id})`}`;
}

export interface Spread {
  min: number;
  max: number;
  count: number;
}

/**
 * How far the samples of a figure lie apart, in the figure's unit; null without samples. Where the figure is not the median of any of them but
 * made of several (a ratio), their relative distances are added up: the ratio may lie further out than each.
 */
export function spreadOf({ value, samples }: Figure): Spread | null {
  const all = Object.entries(samples ?? {}).filter(([name]) => name !== 'limit');
  if (all.length === 0) return null;
  const own = all.find(([, { median }]) => Math.abs(median - value) <= 1e-6 * Math.abs(value));
  if (own) return { min: own[1].min, max: own[1].max, count: own[1].count };
  const relative = (pick: (stats: { median: number; min: number; max: number }) => number) =>
    all.reduce((sum, [, stats]) => sum + (stats.median === 0 ? 0 : Math.abs(pick(stats) / stats.median - 1)), 0);
  const out =
    Math.abs(value) *
    Math.max(
      relative(({ min }) => min),
      relative(({ max }) => max),
    );
  return { min: value - out, max: value + out, count: Math.min(...all.map(([, { count }]) => count)) };
}

/** A number for people: three significant digits or more, thousands set apart. */
export function formatValue(value: number): string {
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size < 0.01 || size >= 1e12) return value.toExponential(2);
  const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
  return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
