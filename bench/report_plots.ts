// The charts of a group of figures: those of the paper for ket and ceet, else the shares of the limits as bars, and a
// comparison with peers if peers were measured.
import type { Figure } from './figure';
import { ceetPlots, ketPlots } from './report_paper';
import { formatValue } from './report_result';
import { barChart, type Plot } from './report_svg';

/** Names without the group that they begin with. A repeated name gets a number, so that it has its own bar. */
function labels(group: string, figures: readonly Figure[]): string[] {
  const seen = new Map<string, number>();
  return figures.map(({ name }) => {
    const short = name.startsWith(group) ? name.slice(group.length).replace(/^[\s:,]+/, '') || name : name;
    const count = (seen.get(short) ?? 0) + 1;
    seen.set(short, count);
    return count === 1 ? short : `${short} (${count})`;
  });
}

function sharePlot(group: string, figures: readonly Figure[], where: string): Plot[] {
  const names = labels(group, figures);
  const rows = figures.flatMap(({ share, limitName }, i) => {
    if (share === null || share === undefined || !Number.isFinite(share)) return [];
    return [{ label: names[i] as string, value: share * 100, text: `${(share * 100).toFixed(1)} %`, kind: limitName }];
  });
  if (rows.length === 0) return [];
  const svg = barChart({
    title: `${group}: share of the limit`,
    subtitle: where,
    rows,
    scale: 'linear',
    origin: 0,
    mark: 100,
    xTitle: 'share of the limit, %',
    legend: 'limit',
  });
  return [
    {
      name: 'share',
      caption: 'Share of the limit; the dashed line is the limit. The share of a time is limit / time.',
      svg,
    },
  ];
}

const OURS = 'diffqkv';

/** The speed of diffqkv relative to each peer, if both were measured at the same coordinates. */
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
  const svg = barChart({
    title: `${group}: compared with peers`,
    subtitle: where,
    rows,
    scale: 'log',
    origin: 1,
    mark: 1,
    xTitle: 'speed of diffqkv / speed of the peer (log scale)',
    legend: 'peer',
  });
  return [
    {
      name: 'peers',
      caption: 'Speed of diffqkv relative to each peer; at the dashed line both are equally fast.',
      svg,
    },
  ];
}

/** The charts of one group of one run. Their subtitle is `where`, the name of the device. */
export function plotsOf(group: string, figures: readonly Figure[], where: string): Plot[] {
  const own = group === 'ket' ? ketPlots(figures, where) : group === 'ceet' ? ceetPlots(figures, where) : [];
  if (own.length > 0) return own;
  return [...peerPlot(group, figures, where), ...sharePlot(group, figures, where)];
}
