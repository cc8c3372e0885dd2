// The paper's own plots, with three lines each: the paper (one H100), the limit by arithmetic, ours.
import type { Figure } from './figure';
import { CONFIG, type Plot, type Spec } from './report_render';
import { collect, LIMIT, ms, OURS, PAPER, type Point, type place, savings } from './report_savings';

const LOOKS = [
  { who: PAPER, color: '#e69f00', shape: 'square', dash: [6, 3] },
  { who: LIMIT, color: '#555555', shape: 'triangle-up', dash: [2, 3] },
  { who: OURS, color: '#0072b2', shape: 'circle', dash: [1, 0] },
];

const tokens = (count: number): string => (count >= 1024 && count % 1024 === 0 ? `${count / 1024}k` : String(count));

function inTokens<T extends Point>(points: readonly T[]) {
  return points.map((point) => ({ ...point, prefix: tokens(point.prefix), output: tokens(point.output) }));
}

/** Labels of the values that occur, in their order as numbers. */
function order(points: readonly Point[], pick: 'prefix' | 'output'): string[] {
  return [...new Set(points.map((point) => point[pick]))].sort((a, b) => a - b).map(tokens);
}

const frame = (title: string, subtitle: string): Spec => ({
  config: CONFIG,
  background: 'white',
  padding: 10,
  title: { text: title, subtitle },
});

/** Lines over the prefix, one for each who, in panels. */
function lines(points: readonly Point[], panel: Spec, y: Spec, size: { width: number; height: number }): Spec {
  const looks = LOOKS.filter(({ who }) => points.some((point) => point.who === who));
  const byWho = (look: 'color' | 'shape' | 'dash') => ({
    field: 'who',
    type: 'nominal',
    scale: { domain: looks.map(({ who }) => who), range: looks.map((each) => each[look]) },
    legend: { title: null, orient: 'bottom' },
  });
  return {
    data: { values: inTokens(points) },
    ...panel,
    spec: {
      ...size,
      mark: { type: 'line', point: { size: 45, filled: true }, strokeWidth: 2 },
      encoding: {
        x: {
          field: 'prefix',
          type: 'ordinal',
          sort: order(points, 'prefix'),
          title: 'prefix, tokens',
          axis: { labelAngle: 0, grid: true },
          scale: { padding: 0.3 },
        },
        y: { field: 'value', type: 'quantitative', ...y },
        color: byWho('color'),
        shape: byWho('shape'),
        strokeDash: byWho('dash'),
      },
    },
  };
}

/** Where costs go below this, in %, each panel has a range of its own: one for all would show the others as flat. */
const WIDE = -60;

/** A range for savings: 0 is always in it, and the limit of 37.5 % where there is one. */
function savingScale(points: readonly Point[]): Spec {
  const values = points.map(({ value }) => value);
  if (Math.min(...values) < WIDE) return { zero: true };
  const top = points.some(({ who }) => who === LIMIT) ? 40 : 0;
  return { domain: [Math.min(0, ...values), Math.max(top, ...values)], nice: true };
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
  const saved = savings(times);
  const plots: Plot[] = [];
  if (totals.length > 0) {
    const y = { title: 'kernel time, ms (log scale)', scale: { type: 'log', nice: true }, axis: { format: '~g' } };
    const panel = { facet: { column: { field: 'model', type: 'nominal', title: null } } };
    plots.push({
      name: 'time',
      caption:
        'Kernel execution time of split and combine together, 10 output tokens, all layers (table 15 of the paper).',
      spec: { ...frame('KET: kernel time per prefix', where), ...lines(totals, panel, y, { width: 280, height: 240 }) },
    });
  }
  if (saved.length > 0) {
    const shown = saved.filter(({ what }) => what !== 'combine');
    const y = { title: "saving, % of STD's time", scale: savingScale(shown) };
    const panel = { facet: { column: { field: 'what', type: 'nominal', title: null, sort: ['total', 'split'] } } };
    plots.push({
      name: 'saving',
      caption: "What Sigma saves of STD's kernel time. The limit is what it has less of K and V.",
      spec: {
        ...frame('KET: saving of Sigma against STD', where),
        ...lines(shown, panel, y, { width: 280, height: 240 }),
      },
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
  const axis = (field: 'prefix' | 'output', sort: string[]) => ({
    field,
    type: 'ordinal',
    sort,
    title: `${field}, tokens`,
  });
  const cell = {
    x: { ...axis('prefix', order(ours, 'prefix')), axis: { labelAngle: 0 } },
    y: axis('output', order(ours, 'output').reverse()),
  };
  const grid: Plot = {
    name: 'grid',
    caption:
      "Saving of Sigma against STD in % of STD's time, for each output and prefix. Of augmented Q, which STD has none of, it is the cost in % of STD's total.",
    spec: {
      ...frame('CEET: saving by output and prefix, %', where),
      data: { values: inTokens(ours).map((point) => ({ ...point, text: point.value.toFixed(1) })) },
      facet: { field: 'what', type: 'nominal', sort: whats, title: null },
      columns: 2,
      spec: {
        width: { step: 46 },
        height: { step: 26 },
        layer: [
          {
            mark: 'rect',
            encoding: {
              ...cell,
              color: {
                field: 'value',
                type: 'quantitative',
                scale: { scheme: 'redblue', domain: [-40, 40], clamp: true },
                legend: { title: 'saving, %', gradientLength: 180 },
              },
            },
          },
          {
            mark: { type: 'text', fontSize: 11 },
            encoding: {
              ...cell,
              text: { field: 'text' },
              color: { condition: { test: 'abs(datum.value) > 28', value: 'white' }, value: 'black' },
            },
          },
        ],
      },
      resolve: { axis: { x: 'independent', y: 'independent' } },
    },
  };
  const perWhat = whats.map((what): Plot => {
    const points = saved.filter((point) => point.what === what);
    const outputs = order(points, 'output');
    const panel = {
      facet: { field: 'output', type: 'ordinal', sort: outputs, title: 'output, tokens' },
      columns: 3,
    };
    const isCost = points.every(({ value }) => value <= 0);
    const wide = points.some(({ value }) => value < WIDE);
    const y = { title: isCost ? "cost, % of STD's total" : 'saving, %', scale: savingScale(points) };
    return {
      name: what.toLowerCase().replace(/\W+/g, '-'),
      caption: `Saving of Sigma against STD, ${what}: a panel for each output.`,
      spec: {
        ...frame(`CEET: saving, ${what}`, where),
        ...lines(points, panel, y, { width: 190, height: 130 }),
        ...(wide ? { resolve: { scale: { y: 'independent' } } } : {}),
      },
    };
  });
  return [grid, ...perWhat];
}
