// A suite is a plan of cells. Each cell is measured separately, so that a run can be stopped and resumed between cells.
import type { Device } from '../lib/index';
import type { Ceilings } from './ceilings';
import type { Figure } from './figure';
import type { Limits } from './limits';
import type { TensorPool } from './tensors';

/** The device, limits and options of a run. */
export interface Bench {
  device: Device;
  /** Fewer shapes and samples, for a run of seconds. */
  quick: boolean;
  /** The limits of the next cell. */
  limits: Limits;
  /** Measures the limits of the CPU; null on other devices. */
  ceilings: Ceilings | null;
  pool: TensorPool;
  /** The preset or checkpoint directory of --model. */
  model?: string;
  /** Writes a line about the current work to stderr. */
  progress: (line: string) => void;
  /** Throws `Stopped` if the user has stopped the run. Called between samples. */
  check(): void;
}

/** The user has stopped the run. */
export class Stopped extends Error {}

/** A measurement that is not interrupted. */
export interface Cell {
  /** Unique within the suite. */
  name: string;
  /** A guess, for the estimate of the time left. */
  seconds: number;
  /** Device memory that it needs. A cell that does not fit is skipped. */
  bytes: number;
  run(): Promise<CellResult>;
}

export interface CellResult {
  figures: Figure[];
  /** Shapes, lengths and counts of this cell. */
  setup?: Record<string, unknown>;
  ceilings?: Record<string, unknown>;
  /** A note for the reader of the figures. */
  note?: string;
  /** The reason why it cannot be measured here. */
  skipped?: string;
}

export interface Plan {
  /** Shapes, lengths, counts and method of the whole suite. */
  setup: Record<string, unknown>;
  cells: Cell[];
  /** Figures computed from measured ones. Called with those that have been measured so far. */
  derive?(measured: readonly Figure[]): Figure[];
  dispose?(): Promise<void>;
}

export interface Suite {
  description: string;
  /** The kinds of devices that it can measure. */
  kinds: readonly Device['info']['kind'][];
  plan(bench: Bench): Plan | Promise<Plan>;
}

/** A choice by the kind of the device. The emulated device only shows that a suite runs. */
export function byKind<T>({ device }: Bench, choice: { cuda: T; cpu: T; emulated: T }): T {
  return choice[device.info.kind];
}
