// The beginning of a report in words: what was measured on what machine, and the main results.
import type { Figure } from './figure';
import { deviceName, formatShare, formatValue, groupOf, type Result } from './report_result';
import { collect, OURS, type Point, savings } from './report_savings';
import { lengthName } from './shapes';

const MAIN_RESULTS = 4;

/** Terms that the figures of a group use. */
export const TERMS: Record<string, string> = {
  ket:
    'KET is the kernel execution time (table 15 of the paper): decode attention for 10 output tokens in 26 layers. ' +
    'It compares the 32/4/16 heads of Sigma with the 32/16/16 heads of STD.',
  ceet:
    'CEET is the CUDA event elapsed time (figure 2 of the paper), measured here with the clock of the device: the time ' +
    'of cache, attention and augmented Q over all output tokens, for Sigma and for STD. STD has no augmented Q.',
};

const count = (number: number, noun: string): string => `${number} ${noun}${number === 1 ? '' : 's'}`;

const withUnit = (value: number, unit: string): string => `${formatValue(value)}${unit && ` ${unit}`}`;

/** 'at least 85 % of the limit', 'at most 0.68'. */
export function targetText({ target, unit }: Figure): string {
  if (!target) return '';
  const bound = (value: number) =>
    target.on === 'share' ? `${+(value * 100).toFixed(1)} % of the limit` : withUnit(value, unit);
  const bounds = [
    target.atLeast === undefined ? '' : `at least ${bound(target.atLeast)}`,
    target.atMost === undefined ? '' : `at most ${bound(target.atMost)}`,
  ];
  return bounds.filter(Boolean).join(', ');
}

function measured(result: Result): string {
  const { suite, machine, versions, date, quick, complete } = result;
  const processor = `${machine.cpu} (${count(machine.cores, 'core')}, ${(machine.memoryBytes / 2 ** 30).toFixed(1)} GiB)`;
  const device = deviceName(result);
  const where = device.startsWith(machine.cpu) ? processor : `${device} in a machine with ${processor}`;
  const how = [quick ? 'It was a quick run.' : '', complete === false ? 'It was stopped before its end.' : ''];
  const skipped = (result.cells ?? []).filter((cell) => cell.skipped !== undefined).length;
  if (skipped > 0) how.push(`${count(skipped, 'measurement')} of it could not be made; the reasons are below.`);
  return [
    `Suite ${suite} has ${count(result.figures.length, 'figure')}, measured on ${where} with diffqkv ${versions.diffqkv} on ${date.slice(0, 10)}.`,
    ...how.filter(Boolean),
  ].join(' ');
}

/** '34.4 GB/s of read bandwidth and 1,443 GFLOP/s': the limits measured in the run; '' without any. */
function limits({ ceilings }: Result): string {
  const median = (name: string): number | undefined =>
    (ceilings?.[name] as { median?: number } | null | undefined)?.median;
  const [read, copy, rate] = ['readGbPerS', 'copyGbPerS', 'matrixGflopPerS'].map(median);
  const parts = [
    read === undefined ? '' : `${formatValue(read)} GB/s of read bandwidth`,
    copy === undefined ? '' : `${formatValue(copy)} GB/s of copy bandwidth`,
    rate === undefined ? '' : `a matrix rate of ${formatValue(rate)} GFLOP/s`,
  ].filter(Boolean);
  return parts.length === 0 ? '' : `The limits measured in the run: ${parts.join(', ')}.`;
}

function targets(figures: readonly Figure[]): string {
  const aimed = figures.filter(({ target }) => target);
  if (aimed.length === 0) return '';
  const met = aimed.filter((figure) => figure.met === true).length;
  return `${met} of ${count(aimed.length, 'target')} ${met === 1 ? 'is' : 'are'} met.`;
}

function figureSentence(figure: Figure): string {
  const { name, value, unit, share, limitName, met } = figure;
  const reached = share == null ? '' : `, ${formatShare(share)} of its limit (${limitName})`;
  const verdict = met == null ? 'without a limit to judge it by' : met ? 'met' : 'missed';
  return `${name}: ${withUnit(value, unit)}${reached}. Target: ${targetText(figure)}, ${verdict}.`;
}

function groupSentence(group: string, figures: readonly Figure[]): string {
  const shares = figures.flatMap(({ share }) => (share == null ? [] : [share])).sort((a, b) => a - b);
  if (shares.length === 0) return '';
  const [least, middle, most] = [0, shares.length >> 1, shares.length - 1].map((i) => formatShare(shares[i] as number));
  if (shares.length === 1) return `${group}: one figure reaches ${most} of its limit.`;
  return `${group}: ${shares.length} figures reach ${least} to ${most} of their limits; the median is ${middle}.`;
}

/** The savings that the summary names. Those of cache and augmented Q are only parts of these. */
const SAVINGS = ['total', 'cache and attention', 'attention'];

/** What Sigma saves in a grid of ket or ceet, one sentence for each saving. */
function savingSentences(group: string, figures: readonly Figure[]): string[] {
  const points = savings(collect(figures)).filter(({ who }) => who === OURS);
  return SAVINGS.filter((name) => points.some(({ what }) => what === name)).map((what) => {
    const own = points.filter((point) => point.what === what).sort((a, b) => a.value - b.value);
    const [least, most] = [own[0], own[own.length - 1]] as [Point, Point];
    const place = ({ value, prefix, output }: Point) =>
      `${value.toFixed(1)} % (prefix ${lengthName(prefix)}${output > 0 ? `, output ${lengthName(output)}` : ''})`;
    const range = own.length === 1 ? place(most) : `${place(least)} to ${place(most)}`;
    const cost = least.value < 0 ? ' Below 0, Sigma takes longer.' : '';
    return `${group.toUpperCase()}, ${what}: Sigma saves ${range} of the time of STD.${cost}`;
  });
}

/** The savings of ket and ceet or the results with a target, then one sentence for each group, up to four in all. */
function mainResults(results: readonly Result[]): string[] {
  const groups = new Map<string, Figure[]>();
  for (const result of results)
    for (const figure of result.figures) {
      const group = groupOf(result, figure);
      groups.set(group, [...(groups.get(group) ?? []), figure]);
    }
  const single: string[] = [];
  const whole: string[] = [];
  for (const [group, figures] of groups) {
    if (group in TERMS) single.push(...savingSentences(group, figures));
    else single.push(...figures.filter(({ target }) => target).map(figureSentence));
    whole.push(groupSentence(group, figures));
  }
  return [...single, ...whole.filter(Boolean)].slice(0, MAIN_RESULTS);
}

export interface Summary {
  paragraphs: string[];
  results: string[];
  terms: string[];
}

export function summarizeResults(results: readonly Result[]): Summary {
  const groups = new Set(results.flatMap((result) => result.figures.map((figure) => groupOf(result, figure))));
  return {
    paragraphs: [
      ...results.map((result) => [measured(result), limits(result)].filter(Boolean).join(' ')),
      targets(results.flatMap(({ figures }) => figures)),
    ].filter(Boolean),
    results: mainResults(results),
    terms: Object.entries(TERMS).flatMap(([group, term]) => (groups.has(group) ? [term] : [])),
  };
}
