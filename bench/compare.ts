// `bench compare A B`: which figures of B moved from those of A by more than their spread.
//
// Disturbances make a figure worse, never better, so the spread of a figure is the distance from its median to its best sample: the worst one
// tells of the worst disturbance. Two signs of a move: the medians differ by more than three times the larger spread of the two; all samples
// of one run lie beyond all of the other. With five samples or more either sign will do, with three or four it takes both: so unmoved figures of random
// samples (normal or exponential) are taken for moved in 3 of 100 cases at three samples, 1 of 100 at five, none of 1,000 at ten. Medians less than LEAST apart never moved.
// Not judged: fewer than three samples, none at all (what was worked out from other figures), another machine or device.
import { parseArgs } from 'node:util';
import type { Figure } from './figure';
import { deviceName, formatValue, groupOf, type Result, readResult, type Spread, spreadOf } from './report_result';

/** Two runs of the same program differ by as much, for where its memory lies and how warm the machine is. */
const LEAST = 0.01;
const SPREADS = 3;
const FEWEST_SAMPLES = 3;
const MANY_SAMPLES = 5;

export type Verdict = 'better' | 'worse' | 'same' | 'unjudged';

export interface Change {
  group: string;
  before: Figure;
  after: Figure;
  /** after / before. */
  ratio: number;
  /** Relative to the median; null where there is none. */
  spreads: [number | null, number | null];
  verdict: Verdict;
  /** Why it is unjudged. */
  reason?: string;
}

export interface Comparison {
  changes: Change[];
  added: Figure[];
  missing: Figure[];
  /** What makes the runs unlike, in words: a difference of machine, device, setup or completeness. */
  notes: string[];
}

/** The relative distance from the median to the best sample. */
function relativeSpread({ value, better }: Figure, spread: Spread | null): number | null {
  if (spread === null || value === 0) return null;
  return Math.abs((better === 'more' ? spread.max : spread.min) / value - 1);
}

function judge(before: Figure, after: Figure): Pick<Change, 'ratio' | 'spreads' | 'verdict' | 'reason'> {
  const ratio = before.value === after.value ? 1 : after.value / before.value;
  const [a, b] = [spreadOf(before), spreadOf(after)];
  const spreads: Change['spreads'] = [relativeSpread(before, a), relativeSpread(after, b)];
  const told = { ratio, spreads };
  const up = after.value > before.value;
  const moved: Verdict = up === (after.better === 'more') ? 'better' : 'worse';
  if (before.unit !== after.unit || before.better !== after.better)
    return { ...told, verdict: 'unjudged', reason: `unit was ${before.unit}, is ${after.unit}` };
  if (before.value === after.value) return { ...told, verdict: 'same' };
  const samples = Math.min(a?.count ?? 0, b?.count ?? 0);
  if (a === null || b === null || spreads[0] === null || spreads[1] === null || samples < FEWEST_SAMPLES)
    return {
      ...told,
      verdict: 'unjudged',
      reason:
        samples === 0
          ? 'worked out, without samples'
          : `${samples} ${samples === 1 ? 'sample is' : 'samples are'} too few`,
    };
  const change = Math.abs(after.value - before.value) / Math.min(Math.abs(before.value), Math.abs(after.value));
  if (change <= LEAST) return { ...told, verdict: 'same' };
  const apart = up ? b.min > a.max : b.max < a.min;
  const far = change > SPREADS * Math.max(spreads[0], spreads[1]);
  return { ...told, verdict: (samples < MANY_SAMPLES ? apart && far : apart || far) ? moved : 'same' };
}

const keyOf = (result: Result, figure: Figure): string =>
  JSON.stringify([groupOf(result, figure), figure.name, Object.entries(figure.at ?? {}).sort()]);

function byKey(result: Result): Map<string, Figure> {
  return new Map(result.figures.map((figure) => [keyOf(result, figure), figure]));
}

/** What differs between where and how the two were measured; `unlike` is true where figures can't be held against each other. */
function circumstances(before: Result, after: Result): { notes: string[]; unlike: boolean } {
  const notes: string[] = [];
  const differ = (what: string, a: unknown, b: unknown): boolean => {
    const [was, is] = [a, b].map((value) => (typeof value === 'string' ? value : JSON.stringify(value ?? null)));
    if (was !== is) notes.push(`${what}: was ${was}, is ${is}`);
    return was !== is;
  };
  const unlike = [
    differ('processor', before.machine.cpu, after.machine.cpu),
    differ('cores', before.machine.cores, after.machine.cores),
    differ('device', deviceName(before), deviceName(after)),
  ].some(Boolean);
  const setups = { ...before.setup, ...after.setup };
  for (const key of Object.keys(setups)) differ(`setup, ${key}`, before.setup?.[key], after.setup?.[key]);
  differ('quick', before.quick ?? false, after.quick ?? false);
  differ('node', before.versions.node, after.versions.node);
  for (const { file, complete } of [before, after])
    if (complete === false) notes.push(`${file} is of a run that was stopped before its end`);
  return { notes, unlike };
}

export function compareResults(before: Result, after: Result): Comparison {
  const { notes, unlike } = circumstances(before, after);
  const [old, now] = [byKey(before), byKey(after)];
  const changes: Change[] = [];
  for (const [key, figure] of now) {
    const was = old.get(key);
    if (was === undefined) continue;
    const change = { group: groupOf(after, figure), before: was, after: figure, ...judge(was, figure) };
    changes.push(unlike ? { ...change, verdict: 'unjudged', reason: 'another machine or device' } : change);
  }
  return {
    changes,
    added: [...now].filter(([key]) => !old.has(key)).map(([, figure]) => figure),
    missing: [...old].filter(([key]) => !now.has(key)).map(([, figure]) => figure),
    notes,
  };
}

function tell({ group, before, after, ratio, spreads, verdict, reason }: Change): string {
  const [a, b] = spreads.map((spread) => (spread === null ? 'no spread' : `spread ${(spread * 100).toFixed(1)} %`));
  const values = `${formatValue(before.value)} -> ${formatValue(after.value)} ${after.unit}`.trimEnd();
  const name = after.name.startsWith(group) ? after.name : `${group}: ${after.name}`;
  return `  ${verdict.padEnd(8)}  ${ratio.toFixed(3)}x  ${name}: ${values} (${a}; ${b})${reason ? `: ${reason}` : ''}`;
}

/** The comparison in words, without a newline at its end. */
export function formatComparison({ changes, added, missing, notes }: Comparison): string {
  const of = (verdict: Verdict) => changes.filter((change) => change.verdict === verdict);
  const part = (title: string, lines: string[]) => (lines.length === 0 ? [] : [title, ...lines]);
  const moved = [...of('worse'), ...of('better')];
  return [
    ...part(
      'The runs differ:',
      notes.map((note) => `  ${note}`),
    ),
    ...part('Moved beyond its spread (B / A; spread of A; of B):', moved.map(tell)),
    ...part('Not judged:', of('unjudged').map(tell)),
    ...part(
      'New:',
      added.map(({ name }) => `  ${name}`),
    ),
    ...part(
      'Missing:',
      missing.map(({ name }) => `  ${name}`),
    ),
    `${of('worse').length} worse, ${of('better').length} better, ${of('same').length} within their spread, ` +
      `${of('unjudged').length} not judged, ${added.length} new, ${missing.length} missing`,
  ].join('\n');
}

const USAGE = `Usage: bench compare A.json B.json [--check]

Tells which figures of B moved from those of A by more than their spread.

Options:
  --check      exit status 1 where a figure got worse, or none could be judged
  -h, --help   this text`;

/** Resolves to the exit status: 0, or 1 for wrong arguments and, with --check, for what got worse. */
export async function compareReports(argv: string[]): Promise<number> {
  const options = { check: { type: 'boolean' }, help: { type: 'boolean', short: 'h' } } as const;
  const wrong = (message: string) => {
    process.stderr.write(`bench compare: ${message}\n\n${USAGE}\n`);
    return 1;
  };
  let comparison: Comparison;
  let check: boolean | undefined;
  try {
    const { values, positionals } = parseArgs({ args: argv, options, allowPositionals: true });
    if (values.help) {
      process.stdout.write(`${USAGE}\n`);
      return 0;
    }
    const [before, after, ...rest] = positionals;
    if (before === undefined || after === undefined || rest.length > 0) return wrong('which two result files?');
    check = values.check;
    comparison = compareResults(readResult(before), readResult(after));
  } catch (error) {
    return wrong((error as Error).message);
  }
  process.stdout.write(`${formatComparison(comparison)}\n`);
  const judged = comparison.changes.filter(({ verdict }) => verdict !== 'unjudged');
  if (!check) return 0;
  if (judged.length === 0) process.stderr.write('bench compare: no figure could be judged\n');
  return judged.length === 0 || judged.some(({ verdict }) => verdict === 'worse') ? 1 : 0;
}
