// Which plots a group of figures gets: the paper's own for ket and ceet, else its shares of the limit as bars, and what was measured of peers beside ours.
import type { Figure } from './figure';
import { ceetPlots, ketPlots } from './report_paper';
import { CONFIG, type Plot, type Spec } from './report_render';
import { formatValue } from './report_result';

const WIDTH = 520;
const COLORS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#999999'];

/** Names without the group that they begin with; the same name twice gets a number, for it would share a bar. */
function labels(group: string, figures: readonly Figure[]): string[] {
  const seen = new Map<string, number>();
  return figures.map(({ name }) => {
    const short = name.startsWith(group) ? name.slice(group.length).replace(/^[\s:,]+/, '') || name : name;
    const count = (seen.get(short) ?? 0) + 1;
    seen.set(short, count);
    return count === 1 ? short : `${short} (${count})`;
  });
}

interface Bar {
  label: string;
  value: number;
  text: string;
  kind: string;
}

/** A scale for the values of bars, with room for the texts at their ends. */
function barScale(rows: readonly Bar[], isRatio: boolean): Spec {
  const values = rows.map(({ value }) => value);
  const share = (Math.max(...rows.map(({ text }) => text.length)) * 6 + 12) / WIDTH;
  if (!isRatio) return { domain: [0, Math.max(100, ...values) / (1 - share)], nice: false };
  const [low, high] = [Math.min(0.7, 0.9 * Math.min(...values)), Math.max(1.2, ...values)];
  return { type: 'log', domain: [low, low * (high / low) ** (1 / (1 - share))], nice: false };
}

/**
 * Horizontal bars in the order given, each with its value at its end. Ratios begin at 1, to the left where they are less, on a log scale; shares
 * begin at 0, with a line at 100 %.
 */
function bars(rows: Bar[], title: string, subtitle: string, axis: string, isRatio: boolean, legend: string): Spec {
  const kinds = [...new Set(rows.map(({ kind }) => kind))];
  const grouped = new Set(rows.map(({ label }) => label)).size < rows.length;
  const y = {
    field: 'label',
    type: 'nominal',
    sort: null,
    title: null,
    axis: { labelLimit: 700, ticks: false, domain: false },
  };
  const offset = grouped ? { yOffset: { field: 'kind', sort: kinds } } : {};
  const mark = isRatio ? 1 : 100;
  const x = {
    field: 'value',
    type: 'quantitative',
    title: axis,
    scale: barScale(rows, isRatio),
    axis: isRatio ? { format: '~g' } : {},
  };
  const text = (halo: Spec): Spec => ({
    transform: isRatio ? [{ calculate: 'max(1, datum.value)', as: 'end' }] : [{ calculate: 'datum.value', as: 'end' }],
    mark: { type: 'text', align: 'left', dx: 4, fontSize: 10.5, ...halo },
    encoding: { y, x: { ...x, field: 'end' }, ...offset, text: { field: 'text' } },
  });
  return {
    data: { values: rows },
    config: CONFIG,
    background: 'white',
    padding: 10,
    title: { text: title, subtitle },
    width: WIDTH,
    height: { step: grouped ? 15 : 19 },
    layer: [
      {
        mark: { type: 'bar', height: { band: 0.8 } },
        encoding: {
          y,
          x,
          ...(isRatio ? { x2: { datum: 1 } } : {}),
          ...offset,
          color: {
            field: 'kind',
            type: 'nominal',
            sort: kinds,
            scale: { domain: kinds, range: kinds.map((_, i) => COLORS[i % COLORS.length]) },
            legend: { title: legend, orient: 'bottom', columns: 1 },
          },
        },
      },
      {
        data: { values: [{ mark }] },
        mark: { type: 'rule', color: '#333', strokeDash: [4, 3] },
        encoding: { x: { field: 'mark', type: 'quantitative' } },
      },
      text({ stroke: 'white', strokeWidth: 4 }),
      text({}),
    ],
  };
}

function sharePlot(group: string, figures: readonly Figure[], where: string): Plot[] {
  const names = labels(group, figures);
  const rows = figures.flatMap(({ share, limitName }, i) => {
    if (share === null || share === undefined || !Number.isFinite(share)) return [];
    return [{ label: names[i] as string, value: share * 100, text: `${(share * 100).toFixed(1)} %`, kind: limitName }];
  });
  if (rows.length === 0) return [];
  const caption = 'How much of the limit is reached; the line is the limit. Times count as limit / time.';
  return [
    {
      name: 'share',
      caption,
      spec: bars(rows, `${group}: share of the limit`, where, 'share of the limit, %', false, 'limit'),
    },
  ];
}

const OURS = 'diffqkv';

/** How many times as fast as each peer ours is, where both were measured at the same coordinates. */
function peerPlot(group: string, figures: readonly Figure[], where: string): Plot[] {
  const rest = ({ at, unit }: Figure) =>
    JSON.stringify([unit, Object.entries({ ...at, who: '' }).sort(([a], [b]) => (a < b ? -1 : 1))]);
  const ours = new Map(figures.filter(({ at }) => at?.who === OURS).map((figure) => [rest(figure), figure]));
  const rows = figures.flatMap((figure) => {
    const own = figure.at?.who === undefined || figure.at.who === OURS ? undefined : ours.get(rest(figure));
    if (own === undefined) return [];
    const value = own.better === 'more' ? own.value / figure.value : figure.value / own.value;
    const { who, ...at } = figure.at ?? {};
    const label = Object.entries(at)
      .map(([key, coordinate]) => (typeof coordinate === 'number' ? `${key} ${coordinate}` : coordinate))
      .join(', ');
    const text = `${value.toFixed(2)}x (${formatValue(own.value)} against ${formatValue(figure.value)} ${own.unit})`;
    return [{ label: label || own.name, value, text, kind: String(who) }];
  });
  if (rows.length === 0) return [];
  const axis = "diffqkv's speed over the peer's (log scale)";
  return [
    {
      name: 'peers',
      caption: 'How many times as fast as each peer diffqkv is; at the line it is as fast.',
      spec: bars(rows, `${group}: beside its peers`, where, axis, true, 'peer'),
    },
  ];
}

/** The plots of one group of one run; `where` names the device under their titles. */
export function plotsOf(group: string, figures: readonly Figure[], where: string): Plot[] {
  const own = group === 'ket' ? ketPlots(figures, where) : group === 'ceet' ? ceetPlots(figures, where) : [];
  if (own.length > 0) return own;
  return [...peerPlot(group, figures, where), ...sharePlot(group, figures, where)];
}
