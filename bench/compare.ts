// `bench compare A B`: the figures of B that differ from those of A by more than their spread.
//
// Disturbances only make a figure worse, so the spread here is the distance from the median to the best sample. There are
// two signs of a change: the medians differ by more than three times the larger spread, or all samples of one run are
// beyond all samples of the other. From five samples on, one sign is enough; with three or four samples, both are needed.
// For random samples (normal or exponential) of an unchanged figure, this reports a change in 3 of 100 cases at three
// samples, in 1 of 100 at five, and in none of 1,000 at ten. Medians that differ by less than LEAST are equal. Figures with
// fewer than three samples, or computed from other figures, or from different machines or devices, are not judged.
import { parseArgs } from 'node:util';
import type { Figure } from './figure';
import { deviceName, formatValue, groupOf, type Result, readResult, type Spread, spreadOf } from './report_result';

/** Two runs of the same program differ by this much, because of memory placement and temperature. */
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
  /** Relative to the median; null without samples. */
  spreads: [number | null, number | null];
  verdict: Verdict;
  /** Why it is unjudged. */
  reason?: string;
}

export interface Comparison {
  changes: Change[];
  added: Figure[];
  missing: Figure[];
  /** The differences between the runs: machine, device, setup, completeness. */
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
  const numbers = { ratio, spreads };
  const up = after.value > before.value;
  const moved: Verdict = up === (after.better === 'more') ? 'better' : 'worse';
  if (before.unit !== after.unit || before.better !== after.better)
    return { ...numbers, verdict: 'unjudged', reason: `unit was ${before.unit}, is ${after.unit}` };
  if (before.value === after.value) return { ...numbers, verdict: 'same' };
  const samples = Math.min(a?.count ?? 0, b?.count ?? 0);
  if (a === null || b === null || spreads[0] === null || spreads[1] === null || samples < FEWEST_SAMPLES)
    return {
      ...numbers,
      verdict: 'unjudged',
      reason:
        samples === 0
          ? 'computed from other figures, without samples'
          : `${samples} ${samples === 1 ? 'sample is' : 'samples are'} too few`,
    };
  const change = Math.abs(after.value - before.value) / Math.min(Math.abs(before.value), Math.abs(after.value));
  if (change <= LEAST) return { ...numbers, verdict: 'same' };
  const apart = up ? b.min > a.max : b.max < a.min;
  const far = change > SPREADS * Math.max(spreads[0], spreads[1]);
  return { ...numbers, verdict: (samples < MANY_SAMPLES ? apart && far : apart || far) ? moved : 'same' };
}

const keyOf = (result: Result, figure: Figure): string =>
  JSON.stringify([groupOf(result, figure), figure.name, Object.entries(figure.at ?? {}).sort()]);

function byKey(result: Result): Map<string, Figure> {
  return new Map(result.figures.map((figure) => [keyOf(result, figure), figure]));
}

/** The differences between the runs. If `unlike`, their figures cannot be compared. */
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
    if (complete === false) notes.push(`${file}: the run was stopped before its end`);
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
    ...part('Changed by more than the spread (B / A; spread of A; of B):', moved.map(tell)),
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

Lists the figures of B that differ from those of A by more than their spread.

Options:
  --check      exit status 1 if a figure is worse, or if no figure could be judged
  -h, --help   print this text`;

/** Resolves to the exit status: 0, or 1 for wrong arguments and, with --check, if a figure is worse or none is judged. */
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
    if (before === undefined || after === undefined || rest.length > 0) return wrong('two result files are needed');
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
