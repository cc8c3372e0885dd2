// The page of a report: one HTML text that loads no other file.
import type { Figure } from './figure';
import {
  deviceName,
  formatShare,
  formatValue,
  groupOf,
  overLimitReason,
  type Result,
  spreadBelowZero,
  spreadOf,
} from './report_result';
import { summarizeResults, targetText } from './report_summary';
import { escapeMarkup as escapeHtml } from './report_svg';

/** A plot and the file that it was also written to. */
export interface DrawnPlot {
  svg: string;
  caption: string;
  /** File name, in the folder of the page. */
  file: string;
}

export interface Section {
  group: string;
  plots: DrawnPlot[];
  rows: { result: Result; figure: Figure }[];
}

/** A table with more rows is folded. */
const LONG_TABLE = 80;

const STYLE = `
  :root { color-scheme: light; }
  body { font: 14px/1.45 sans-serif; color: #1a1a1a; background: white; margin: 24px auto; padding: 0 24px; max-width: 1280px; }
  h1 { font-size: 24px; } h2 { font-size: 19px; margin-top: 40px; border-bottom: 1px solid #ddd; }
  table { border-collapse: collapse; margin: 12px 0; } .wide { overflow-x: auto; }
  th, td { padding: 3px 10px; border-bottom: 1px solid #e3e3e3; text-align: left; vertical-align: top; }
  thead th { background: #f3f3f3; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .dim { color: #666; } .bad { color: #b00020; font-weight: bold; } .good { color: #00703c; }
  figure { margin: 16px 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #444; max-width: 800px; }
  code, pre { font-size: 12px; } pre { background: #f6f6f6; padding: 8px; overflow-x: auto; } nav a { margin-right: 14px; }
`;

export const slug = (text: string): string =>
  text
    .toLowerCase()
    .replace(/[^a-z0-9]+/g, '-')
    .replace(/^-|-$/g, '');

const cell = (content: string, kind = ''): string => `<td${kind && ` class="${kind}"`}>${content}</td>`;
const number = (value: number | null | undefined): string => cell(value == null ? '' : formatValue(value), 'n');

function table(head: [title: string, kind?: string][], rows: string[]): string {
  const titles = head.map(([title, kind]) => `<th${kind ? ` class="${kind}"` : ''}>${escapeHtml(title)}</th>`).join('');
  return `<div class="wide"><table><thead><tr>${titles}</tr></thead><tbody>\n${rows.join('\n')}\n</tbody></table></div>`;
}

/** The machine, versions and options of each run, side by side. */
function runsTable(results: readonly Result[]): string {
  const facts: [string, (result: Result) => unknown][] = [
    ['suite', ({ suite }) => suite],
    ['command', ({ command }) => command],
    ['date', ({ date, seconds }) => `${date}${seconds === undefined ? '' : `, ${seconds} s`}`],
    [
      'complete',
      ({ complete, quick }) => `${complete === false ? 'no: stopped before its end' : 'yes'}${quick ? ', quick' : ''}`,
    ],
    ['device', deviceName],
    ['processor', ({ machine }) => `${machine.cpu}, ${machine.cores} cores`],
    ['memory', ({ machine }) => `${(machine.memoryBytes / 2 ** 30).toFixed(1)} GiB`],
    ['system', ({ machine }) => machine.os],
    ['load before the run', ({ machine }) => machine.loadAverage.toFixed(2)],
    ['device details', ({ device }) => (typeof device === 'object' ? details(device) : '')],
    ['versions', ({ versions }) => `diffqkv ${versions.diffqkv}, node ${versions.node}`],
    [
      'commit',
      ({ commit, versions }) => `${commit ?? versions.commit ?? 'none'}${versions.dirty ? ', with changes' : ''}`,
    ],
  ];
  const rows = facts.map(([name, tell]) => {
    const cells = results.map((result) => cell(escapeHtml(tell(result) ?? ''))).join('');
    return `<tr><th>${name}</th>${cells}</tr>`;
  });
  return table([[''], ...results.map((_, i): [string] => [results.length > 1 ? `run ${i + 1}` : 'run'])], rows);
}

function details(device: Record<string, unknown>): string {
  const { details, totalMemory: _memory, usable: _usable, id: _id, name: _name, ...rest } = device;
  return Object.entries({ ...rest, ...(details as object | undefined) })
    .map(([key, value]) => `${key} ${value}`)
    .join(', ');
}

function peersTable(results: readonly Result[]): string {
  const rows = results.flatMap(({ peers = [] }) =>
    peers.map(({ name, version, status, reason }) => {
      const kind = status === 'missing' ? 'bad' : 'good';
      return `<tr>${[cell(escapeHtml(name)), cell(escapeHtml(version ?? '')), cell(escapeHtml(status), kind), cell(escapeHtml(reason ?? ''))].join('')}</tr>`;
    }),
  );
  if (rows.length === 0) return '';
  return `<h2 id="measured-peers">Peers</h2>\n${table([['peer'], ['version'], ['status'], ['reason']], rows)}`;
}

/** Why measurements were skipped, and the notes on the others. */
function remarks(results: readonly Result[]): string {
  const lines = results.flatMap(({ cells = [] }) =>
    cells.flatMap(({ name, skipped, note }) => [
      ...(skipped === undefined ? [] : [`${name}: not measured: ${skipped}`]),
      ...(note === undefined ? [] : [`${name}: ${note}`]),
    ]),
  );
  return lines.length === 0 ? '' : `<ul>\n${lines.map((line) => `<li>${escapeHtml(line)}</li>`).join('\n')}\n</ul>`;
}

function target(figure: Figure): string {
  const { target, met } = figure;
  if (!target) return cell('');
  const word = met === null ? 'no limit' : met ? 'met' : 'missed';
  return cell(`${escapeHtml(targetText(figure))}: ${word}`, met === null ? 'dim' : met ? 'good' : 'bad');
}

function figuresTable(rows: Section['rows'], results: readonly Result[]): string {
  const any = (has: (figure: Figure) => unknown) => rows.some(({ figure }) => has(figure));
  const columns: [title: string, kind: string, shown: boolean, tell: (row: Section['rows'][number]) => string][] = [
    ['run', 'n', results.length > 1, ({ result }) => cell(String(results.indexOf(result) + 1), 'n')],
    ['figure', '', true, ({ figure }) => cell(escapeHtml(figure.name))],
    ['value', 'n', true, ({ figure }) => number(figure.value)],
    ['unit', '', true, ({ figure }) => cell(escapeHtml(figure.unit))],
    ['better', '', true, ({ figure }) => cell(escapeHtml(figure.better ?? ''), 'dim')],
    ['spread: min to max (samples)', 'n', true, ({ figure }) => cell(spread(figure), 'n')],
    ['limit', 'n', true, ({ figure }) => number(figure.limit)],
    ['limit is', '', true, ({ figure }) => cell(escapeHtml(figure.limitName ?? ''), 'dim')],
    ['share', 'n', true, ({ figure }) => cell(figure.share == null ? '' : formatShare(figure.share), 'n')],
    ['paper', 'n', any(({ paper }) => paper != null), ({ figure }) => number(figure.paper)],
    ['bytes', 'n', any(({ bytes }) => bytes), ({ figure }) => number(figure.bytes)],
    ['FLOPs', 'n', any(({ flops }) => flops), ({ figure }) => number(figure.flops)],
    ['target', '', any(({ target }) => target), ({ figure }) => target(figure)],
  ];
  const shown = columns.filter(([, , isShown]) => isShown);
  return table(
    shown.map(([title, kind]) => [title, kind]),
    rows.map((row) => `<tr>${shown.map(([, , , tell]) => tell(row)).join('')}</tr>`),
  );
}

function spread(figure: Figure): string {
  const found = spreadOf(figure);
  return found === null ? '' : `${formatValue(found.min)} to ${formatValue(found.max)} (${found.count})`;
}

/** The reasons for shares above 100 % and for spreads below 0, each once. */
function reasons(rows: Section['rows']): string {
  const found = new Set(
    rows.flatMap(({ figure }) =>
      [overLimitReason(figure), spreadBelowZero(figure)].filter((reason) => reason !== null),
    ),
  );
  return [...found].map((reason) => `<p class="dim">${escapeHtml(reason)}</p>`).join('\n');
}

function section({ group, plots, rows }: Section, results: readonly Result[]): string {
  const figures = plots.map(
    ({ svg, caption, file }) =>
      `<figure>${svg}<figcaption>${escapeHtml(caption)} <a href="${escapeHtml(file)}">SVG</a></figcaption></figure>`,
  );
  const open = rows.length > LONG_TABLE ? '' : ' open';
  const all = `<details${open}><summary>${rows.length} figures</summary>\n${figuresTable(rows, results)}\n${reasons(rows)}\n</details>`;
  return `<h2 id="${slug(group)}">${escapeHtml(group)}</h2>\n${figures.join('\n')}\n${all}`;
}

/** The figures of all results by group, in the order of the first figure of each group. */
export function groupFigures(results: readonly Result[]): Map<string, Section['rows']> {
  const groups = new Map<string, Section['rows']>();
  for (const result of results) {
    for (const figure of result.figures) {
      const group = groupOf(result, figure);
      groups.set(group, [...(groups.get(group) ?? []), { result, figure }]);
    }
  }
  return groups;
}

function summary(results: readonly Result[]): string {
  const { paragraphs, results: main, terms } = summarizeResults(results);
  const list = main.map((sentence) => `<li>${escapeHtml(sentence)}</li>`);
  const explained = [
    ...terms,
    'Every value is the median of its samples. Its limit is what the machine allows at best: bytes or FLOPs at the ' +
      'rates measured in the same run, unless the name of the limit says otherwise. The share is the part of the limit ' +
      'that the figure reaches.',
  ];
  return [
    ...paragraphs.map((text) => `<p>${escapeHtml(text)}</p>`),
    ...(list.length === 0 ? [] : [`<p>Main results:</p>\n<ul>\n${list.join('\n')}\n</ul>`]),
    ...explained.map((text) => `<p>${escapeHtml(text)}</p>`),
  ].join('\n');
}

export function renderPage(results: readonly Result[], sections: readonly Section[]): string {
  const suites = [...new Set(results.map(({ suite }) => suite))].join(', ');
  const links = sections.map(({ group }) => `<a href="#${slug(group)}">${escapeHtml(group)}</a>`).join(' ');
  const raw = results.map(({ setup, ceilings, suite }) => {
    const text = escapeHtml(JSON.stringify({ setup, ceilings }, null, 1));
    return `<details><summary>${escapeHtml(suite)}: setup and ceilings as measured</summary><pre>${text}</pre></details>`;
  });
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>diffqkv bench: ${escapeHtml(suites)}</title>
<style>${STYLE}</style>
</head>
<body>
<h1>diffqkv bench: ${escapeHtml(suites)}</h1>
${summary(results)}
${runsTable(results)}
${raw.join('\n')}
${remarks(results)}
<nav>${links}</nav>
${peersTable(results)}
${sections.map((each) => section(each, results)).join('\n')}
</body>
</html>
`;
}
