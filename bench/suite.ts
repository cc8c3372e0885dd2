// What a suite is: a plan of cells, each measured by itself, so that a run can be stopped between two of them and resumed.
import type { Device } from '../lib/index';
import type { Ceilings } from './ceilings';
import type { Figure } from './figure';
import type { Limits } from './limits';
import type { TensorPool } from './tensors';

/** What a suite measures with. */
export interface Bench {
  device: Device;
  /** Fewer shapes and samples: a few seconds. */
  quick: boolean;
  /** The ceilings, measured before the first cell. */
  limits: Limits;
  /** The program that measures the CPU's ceilings; null on other devices, and where it cannot be built. */
  ceilings: Ceilings | null;
  pool: TensorPool;
  /** --model: a preset or a checkpoint directory. */
  model?: string;
  /** One line about what is being done now; goes to stderr. */
  progress: (line: string) => void;
  /** Throws `Stopped` once the user has asked to stop; called between samples. */
  check(): void;
}

/** The user has asked to stop. */
export class Stopped extends Error {}

/** What is measured in one go. */
export interface Cell {
  /** Unique within the suite. */
  name: string;
  /** A guess, from which the time left is told until cells have been measured. */
  seconds: number;
  /** Device memory that it takes at once: a cell that does not fit is skipped. */
  bytes: number;
  run(): Promise<CellResult>;
}

export interface CellResult {
  figures: Figure[];
  /** Shapes, lengths and counts of this cell alone. */
  setup?: Record<string, unknown>;
  ceilings?: Record<string, unknown>;
  /** What the reader of the figures must know. */
  note?: string;
  /** Why it cannot be measured here. */
  skipped?: string;
}

export interface Plan {
  /** Shapes, lengths, counts and the method, for the whole suite. */
  setup: Record<string, unknown>;
  cells: Cell[];
  /** Figures by arithmetic on measured ones; called with whatever has been measured so far. */
  derive?(measured: readonly Figure[]): Figure[];
  dispose?(): Promise<void>;
}

export interface Suite {
  description: string;
  /** The kinds of device that it can measure. */
  kinds: readonly BenchKind[];
  plan(bench: Bench): Plan | Promise<Plan>;
}

/** 'trial': a device on which times mean nothing, so that a suite only shows that it runs. */
export type BenchKind = 'cuda' | 'cpu' | 'trial';

/** Any device that is neither a GPU nor the CPU, such as the tests' emulated GPU, is for trial runs. */
export function kindOf({ kind }: { kind: string }): BenchKind {
  return kind === 'cuda' || kind === 'cpu' ? kind : 'trial';
}

export const isTrial = ({ info }: Pick<Device, 'info'>): boolean => kindOf(info) === 'trial';

export function byKind<T>({ device }: Bench, choice: Record<BenchKind, T>): T {
  return choice[kindOf(device.info)];
}
