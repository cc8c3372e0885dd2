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
  /** How much of the limit is reached: value / limit, or limit / value where less is better; null without a limit above 0. */
  share: number | null;
  target: { on: 'share' | 'value'; atLeast?: number; atMost?: number } | null;
  /** null: there is no target, or no limit to hold it against. */
  met: boolean | null;
  /** Samples of `value`, or of the time that it was computed from. */
  samples: Record<string, Stats>;
  /** Which plot or table it belongs to: 'ket', 'ceet', 'attention decode', ... */
  group?: string;
  /** Its coordinates there: { heads: '32/4/16', prefix: 32768, what: 'total' }. */
  at?: Record<string, string | number>;
  /** The paper's value of the same quantity in the same unit, where it has one. */
  paper?: number | null;
  /** What must be moved, by arithmetic. */
  bytes?: number;
  /** What must be computed, by arithmetic. */
  flops?: number;
}

export type FigureInput = Omit<Figure, 'share' | 'met'>;

/** Works out share and met. */
export function figure(input: FigureInput): Figure {
  const { value, limit, better } = input;
  // A saving that cannot be had, a limit of 0 or below, has no share.
  const share = limit === null || limit <= 0 ? null : better === 'more' ? value / limit : limit / value;
  return { ...input, share, met: isMet(input, share) };
}

function isMet({ target, value }: FigureInput, share: number | null): boolean | null {
  if (target === null) return null;
  const measured = target.on === 'value' ? value : share;
  if (measured === null) return null;
  return measured >= (target.atLeast ?? -Infinity) && measured <= (target.atMost ?? Infinity);
}
