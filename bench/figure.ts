// The results of a suite: figures, each with its limit, which is measured in the same run, and its target.
import type { Stats } from './measure';

/** One figure. A figure without a target is for information. */
export interface Figure {
  name: string;
  value: number;
  unit: string;
  /** The best value that the machine allows, measured in the same run or by arithmetic; null if it was not measured. */
  limit: number | null;
  limitName: string;
  /** Whether more or less is better: throughput, or time. */
  better: 'more' | 'less';
  /** value / limit, or limit / value if less is better; null without a limit above 0. */
  share: number | null;
  target: { on: 'share' | 'value'; atLeast?: number; atMost?: number } | null;
  /** null without a target, or without the limit that the target refers to. */
  met: boolean | null;
  /** Samples of `value`, or of the times that it is computed from. */
  samples: Record<string, Stats>;
  /** The plot and table that it belongs to: 'ket', 'ceet', 'attention decode', ... */
  group?: string;
  /** Its coordinates there: { heads: '32/4/16', prefix: 32768, what: 'total' }. */
  at?: Record<string, string | number>;
  /** The value in the paper, in the same unit. */
  paper?: number | null;
  /** Bytes that must be moved, by arithmetic. */
  bytes?: number;
  /** FLOPs that must be computed, by arithmetic. */
  flops?: number;
}

export type FigureInput = Omit<Figure, 'share' | 'met'>;

/** Computes share and met. */
export function figure(input: FigureInput): Figure {
  const { value, limit, better } = input;
  // A limit of 0 or below is a saving that is not possible, so that there is no share.
  const share = limit === null || limit <= 0 ? null : better === 'more' ? value / limit : limit / value;
  return { ...input, share, met: isMet(input, share) };
}

function isMet({ target, value }: FigureInput, share: number | null): boolean | null {
  if (target === null) return null;
  const measured = target.on === 'value' ? value : share;
  if (measured === null) return null;
  return measured >= (target.atLeast ?? -Infinity) && measured <= (target.atMost ?? Infinity);
}
