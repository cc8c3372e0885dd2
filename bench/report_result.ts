// Reading result files, for `report` and `compare`.
import * as fs from 'node:fs';
import type { Figure } from './figure';
import type { Machine, Versions } from './machine';

/** A result file. Files of older versions lack the optional properties. */
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
  /** The measurements; `skipped` is the reason why one was not made. */
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
    throw new Error(`${file} cannot be read as a result of the bench: ${(error as Error).message}`);
  }
  if (!Array.isArray(result?.figures) || !result.machine || !result.versions)
    throw new Error(`${file} is not a result of the bench: figures, machine or versions are missing`);
  return { ...result, file };
}

/** The table and plots that a figure belongs to. */
export const groupOf = (result: Result, figure: Figure): string => figure.group ?? result.suite;

/** 'NVIDIA H100 (cuda)', or the processor if the result does not name a device. */
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

/** The ways in which a figure is computed from two lists of samples, a and b. */
const COMPUTED = [
  (a: number, b: number) => a / b,
  (a: number, b: number) => 100 * (1 - a / b), // a saving in %
];

/**
 * The least and the greatest value that the samples of a figure allow, in the figure's unit; null without samples. For a
 * ratio or a saving they combine the extremes of both lists of samples. A figure that is computed in another way has the
 * sum of the relative distances of its samples.
 */
export function spreadOf({ value, samples }: Figure): Spread | null {
  const all = Object.entries(samples ?? {}).flatMap(([name, stats]) => (name === 'limit' ? [] : [stats]));
  if (all.length === 0) return null;
  const isValue = (computed: number) => Math.abs(computed - value) <= 1e-6 * Math.abs(value);
  const own = all.find(({ median }) => isValue(median));
  if (own) return { min: own.min, max: own.max, count: own.count };
  const count = Math.min(...all.map((stats) => stats.count));
  const [first, second] = all;
  if (first && second && all.length === 2) {
    for (const [a, b] of [
      [first, second],
      [second, first],
    ] as const) {
      for (const compute of COMPUTED) {
        if (!isValue(compute(a.median, b.median))) continue;
        const ends = [compute(a.min, b.max), compute(a.max, b.min)];
        return { min: Math.min(...ends), max: Math.max(...ends), count };
      }
    }
  }
  const relative = (pick: (stats: { median: number; min: number; max: number }) => number) =>
    all.reduce((sum, stats) => sum + (stats.median === 0 ? 0 : Math.abs(pick(stats) / stats.median - 1)), 0);
  const distance =
    Math.abs(value) *
    Math.max(
      relative(({ min }) => min),
      relative(({ max }) => max),
    );
  return { min: value - distance, max: value + distance, count };
}

/** Why the spread of a figure goes below 0; null if it does not. */
export function spreadBelowZero(figure: Figure): string | null {
  const spread = spreadOf(figure);
  if (spread === null || spread.min >= 0) return null;
  return (
    'A spread below 0: the value is computed from two times, and the spread combines the slowest sample of one with ' +
    'the fastest sample of the other. These need not have occurred together.'
  );
}

/** Why a figure exceeds its limit; null if it does not. */
export function overLimitReason({ share, limitName }: Figure): string | null {
  if (share == null || share <= 1) return null;
  if (limitName === 'bytes over bytes')
    return (
      'A share above 100 %: the limit of a ratio or saving compares bytes only. The two times can be different shares ' +
      'of their own limits, so that their ratio is better than that of the bytes.'
    );
  return (
    'A share above 100 %: the limit is a measurement too, made at another time than the figure and, for a matrix rate, ' +
    'with matrices of another shape. A figure close to its limit can therefore exceed it.'
  );
}

/** '89.9 %' for 0.899. */
export const formatShare = (share: number): string => `${(share * 100).toFixed(1)} %`;

/** Three significant digits or more, with commas between thousands. */
export function formatValue(value: number): string {
  const size = Math.abs(value);
  if (value === 0) return '0';
  if (size < 0.01 || size >= 1e12) return value.toExponential(2);
  const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
  return value.toLocaleString('en', { minimumFractionDigits: digits, maximumFractionDigits: digits });
}
