// What a suite yields: figures, each beside the limit measured in the same run and the target set for it.
import type { Stats } from './measure';

/** One figure. A figure without a target is told for information. */
export interface Figure {
  name: string;
  value: number;
  unit: string;
  /** The best value that the machine allows, measured in the same run or known by arithmetic; null where it could not be measured. */
  limit: number | null;
  limitName: string;
  /** Whether more or less is better: throughput, or time. */
  better: 'more' | 'less';
  /** How much of the limit is reached: value / limit, or limit / value where less is better; null without a limit. */
  share: number | null;
  target: { on: 'share' | 'value'; atLeast?: number; atMost?: number } | null;
  /** null: there is no target, or no limit to hold it against. */
  met: boolean | null;
  /** Samples of `value`, or of the time that it was computed from. */
  samples: Record<string, Stats>;
}

export type FigureInput = Omit<Figure, 'share' | 'met'>;

/** Works out share and met. */
export function figure(input: FigureInput): Figure {
  const { value, limit, better } = input;
  const share = limit === null ? null : better === 'more' ? value / limit : limit / value;
  return { ...input, share, met: isMet(input, share) };
}

function isMet({ target, value }: FigureInput, share: number | null): boolean | null {
  if (target === null) return null;
  const measured = target.on === 'value' ? value : share;
  if (measured === null) return null;
  return measured >= (target.atLeast ?? -Infinity) && measured <= (target.atMost ?? Infinity);
}

/** What a suite hands back. */
export interface SuiteResult {
  /** Shapes, lengths and counts that the figures were measured at. */
  setup: Record<string, unknown>;
  /** Device details, in words. */
  device: Record<string, unknown>;
  /** Each limit as measured. */
  ceilings: Record<string, unknown>;
  figures: Figure[];
}

/** What a suite is given. */
export interface SuiteContext {
  /** One of the suite's `devices`. */
  deviceId: string;
  quick: boolean;
  /** One line about what is being done now; goes to stderr. */
  progress: (line: string) => void;
}

export interface Suite {
  description: string;
  /** Ids of the devices that it can measure, the default first. */
  devices: string[];
  run(context: SuiteContext): Promise<SuiteResult>;
}
