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

/** Horizontal bars in the order given, each with its value at its end, and a line where value is `mark`. */
function bars(rows: Bar[], title: string, subtitle: string, axis: string, mark: number, legend: string): Spec {
  const kinds = [...new Set(rows.map(({ kind }) => kind))];
  const grouped = new Set(rows.map(({ label }) => label)).size < rows.length;
  const y = {
    field: 'label',
    type: 'nominal',
    sort: null,
    title: null,
    axis: { labelLimit: 480, ticks: false, domain: false },
  };
  const offset = grouped ? { yOffset: { field: 'kind', sort: kinds } } : {};
  const most = Math.max(mark, ...rows.map(({ value }) => value));
  const room = Math.max(...rows.map(({ text }) => text.length)) * 6 + 12; // of the texts at the ends of bars
  const x = {
    field: 'value',
    type: 'quantitative',
    title: axis,
    scale: { domain: [0, most / (1 - room / WIDTH)], nice: false },
  };
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
      {
        mark: { type: 'text', align: 'left', dx: 4, fontSize: 10.5, stroke: 'white', strokeWidth: 4 },
        encoding: { y, x, ...offset, text: { field: 'text' } },
      },
      {
        mark: { type: 'text', align: 'left', dx: 4, fontSize: 10.5 },
        encoding: { y, x, ...offset, text: { field: 'text' } },
      },
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
      spec: bars(rows, `${group}: share of the limit`, where, 'share of the limit, %', 100, 'limit'),
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
  const axis = "diffqkv's speed over the peer's";
  return [
    {
      name: 'peers',
      caption: 'How many times as fast as each peer diffqkv is; at the line it is as fast.',
      spec: bars(rows, `${group}: beside its peers`, where, axis, 1, 'peer'),
    },
  ];
}

/** The plots of one group of one run; `where` names the device under their titles. */
export function plotsOf(group: string, figures: readonly Figure[], where: string): Plot[] {
  const own = group === 'ket' ? ketPlots(figures, where) : group === 'ceet' ? ceetPlots(figures, where) : [];
  if (own.length > 0) return own;
  return [...peerPlot(group, figures, where), ...sharePlot(group, figures, where)];
}
