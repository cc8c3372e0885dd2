// Charts like those of the paper, with three lines each: the paper (one H100), the limit by arithmetic, this run.
import type { Figure } from './figure';
import { collect, LIMIT, ms, OURS, PAPER, type Point, type place, savings } from './report_savings';
import { cellChart, type Heading, type Line, type LineChart, type Look, lineChart, type Plot } from './report_svg';

const LOOKS: [who: string, look: Look][] = [
  [PAPER, { color: '#e69f00', shape: 'square', dash: '6 3' }],
  [LIMIT, { color: '#555555', shape: 'triangle', dash: '2 3' }],
  [OURS, { color: '#0072b2', shape: 'circle', dash: '' }],
];

/** If costs go below this, in %, each panel has a y axis of its own: one for all would show the others as flat. */
const WIDE = -60;

const tokens = (count: number): string => (count >= 1024 && count % 1024 === 0 ? `${count / 1024}k` : String(count));

/** Labels of the values that occur, in ascending order of the values. */
function labelsOf(points: readonly Point[], pick: 'prefix' | 'output'): string[] {
  return [...new Set(points.map((point) => point[pick]))].sort((a, b) => a - b).map(tokens);
}

/** The points of one panel as lines over the prefix. */
function linesOf(points: readonly Point[]): Line[] {
  return LOOKS.flatMap(([who, look]) => {
    const own = points.filter((point) => point.who === who);
    if (own.length === 0) return [];
    return [{ name: who, look, points: own.map(({ prefix, value }) => ({ x: tokens(prefix), y: value })) }];
  });
}

/** Panels of the points that have the same title, in the order of the titles. */
function panelsOf<T extends Point>(points: readonly T[], titles: readonly string[], titleOf: (point: T) => string) {
  return titles.map((title) => ({ title, lines: linesOf(points.filter((point) => titleOf(point) === title)) }));
}

/** Savings always include 0, and the limit of 37.5 % if it is shown. */
function savingChart(
  heading: Heading,
  points: readonly Point[],
  layout: Pick<LineChart, 'panels' | 'columns' | 'width' | 'height' | 'yTitle'>,
): string {
  const ownAxes = points.some(({ value }) => value < WIDE);
  const include = points.some(({ who }) => who === LIMIT) && !ownAxes ? [0, 40] : [0];
  const xs = labelsOf(points, 'prefix');
  return lineChart({ ...heading, ...layout, xs, xTitle: 'prefix, tokens', scale: 'linear', include, ownAxes });
}

export function ketPlots(figures: readonly Figure[], where: string): Plot[] {
  const times = collect(figures);
  const totals: (Point & { model: string })[] = [];
  for (const [at, { sigma, std }] of times) {
    const point = JSON.parse(at) as ReturnType<typeof place>;
    if (point.what !== 'total') continue;
    for (const [model, figure] of [['Sigma', sigma] as const, ['STD', std] as const]) {
      if (!figure) continue;
      const add = (who: string, value: number | null | undefined) => {
        if (value != null && value > 0)
          totals.push({ ...point, who, value: ms(figure, value), model: `${model} ${figure.at?.heads}` });
      };
      add(PAPER, figure.paper);
      add(LIMIT, figure.limit);
      add(OURS, figure.value);
    }
  }
  totals.sort((a, b) => a.prefix - b.prefix);
  const plots: Plot[] = [];
  const size = { width: 280, height: 240 };
  if (totals.length > 0) {
    const models = [...new Set(totals.map(({ model }) => model))].sort();
    plots.push({
      name: 'time',
      caption:
        'Kernel execution time of the split and combine kernels together, 10 output tokens, all layers (table 15 of the paper).',
      svg: lineChart({
        title: 'KET (kernel execution time) by prefix',
        subtitle: where,
        panels: panelsOf(totals, models, ({ model }) => model),
        columns: models.length,
        ...size,
        xs: labelsOf(totals, 'prefix'),
        xTitle: 'prefix, tokens',
        yTitle: 'kernel time, ms (log scale)',
        scale: 'log',
        include: [],
        ownAxes: false,
      }),
    });
  }
  const saved = savings(times).filter(({ what }) => what !== 'combine');
  if (saved.length > 0) {
    const whats = ['total', 'split'].filter((name) => saved.some(({ what }) => what === name));
    plots.push({
      name: 'saving',
      caption: "Saving of Sigma in % of STD's kernel time. The limit is the share of K and V bytes that Sigma saves.",
      svg: savingChart({ title: 'KET (kernel execution time): saving of Sigma', subtitle: where }, saved, {
        panels: panelsOf(saved, whats, ({ what }) => what),
        columns: whats.length,
        ...size,
        yTitle: "saving, % of STD's time",
      }),
    });
  }
  return plots;
}

const WHATS = ['cache', 'attention', 'cache and attention', 'augmented Q', 'total'];

export function ceetPlots(figures: readonly Figure[], where: string): Plot[] {
  const saved = savings(collect(figures));
  const ours = saved.filter(({ who }) => who === OURS);
  if (ours.length === 0) return [];
  const rank = (what: string) => (WHATS.indexOf(what) + WHATS.length + 1) % (WHATS.length + 1);
  const whats = [...new Set(ours.map(({ what }) => what))].sort((a, b) => rank(a) - rank(b));
  const cellsOf = (name: string) =>
    ours
      .filter(({ what }) => what === name)
      .map(({ prefix, output, value }) => ({ x: tokens(prefix), y: tokens(output), value }));
  const grid: Plot = {
    name: 'grid',
    caption:
      "Saving of Sigma in % of STD's time, for each output and prefix. STD has no augmented Q; its panel shows the cost in % of STD's total.",
    svg: cellChart({
      title: 'CEET (CUDA event elapsed time): saving by output and prefix, %',
      subtitle: where,
      panels: whats.map((what) => ({ title: what, cells: cellsOf(what) })),
      xs: labelsOf(ours, 'prefix'),
      ys: labelsOf(ours, 'output').reverse(),
      xTitle: 'prefix, tokens',
      yTitle: 'output, tokens',
      most: 40,
      legend: 'saving, %',
    }),
  };
  const perWhat = whats.map((what): Plot => {
    const points = saved.filter((point) => point.what === what);
    const titleOf = ({ output }: Point) => `output ${tokens(output)}`;
    const titles = labelsOf(points, 'output').map((output) => `output ${output}`);
    const isCost = points.every(({ value }) => value <= 0);
    return {
      name: what.toLowerCase().replace(/\W+/g, '-'),
      caption: `Saving of Sigma, ${what}: one panel for each number of output tokens.`,
      svg: savingChart({ title: `CEET (CUDA event elapsed time): saving, ${what}`, subtitle: where }, points, {
        panels: panelsOf(points, titles, titleOf),
        columns: 3,
        width: 190,
        height: 130,
        yTitle: isCost ? "cost, % of STD's total" : 'saving, %',
      }),
    };
  });
  return [grid, ...perWhat];
}
