// The charts of a report as SVG text: lines in panels, a grid of colored cells, and horizontal bars.

export interface Plot {
  /** Part of the file name. */
  name: string;
  caption: string;
  svg: string;
}

export interface Heading {
  title: string;
  subtitle: string;
}

export interface Look {
  color: string;
  shape: 'square' | 'triangle' | 'circle';
  /** Pattern of the line, as of stroke-dasharray; '' for a solid line. */
  dash: string;
}

export interface Line {
  name: string;
  look: Look;
  points: { x: string; y: number }[];
}

/** Charts in a grid, each with its own title. */
export interface LineChart extends Heading {
  panels: { title: string; lines: Line[] }[];
  columns: number;
  width: number;
  height: number;
  /** The values of x from left to right. */
  xs: string[];
  xTitle: string;
  yTitle: string;
  scale: 'log' | 'linear';
  /** Values that the y axis must include. */
  include: number[];
  /** Whether each panel has its own y axis. */
  ownAxes: boolean;
}

export interface CellChart extends Heading {
  panels: { title: string; cells: { x: string; y: string; value: number }[] }[];
  /** From left to right, and from top to bottom. */
  xs: string[];
  ys: string[];
  xTitle: string;
  yTitle: string;
  /** The value of the darkest color. */
  most: number;
  legend: string;
}

export interface Bar {
  label: string;
  value: number;
  text: string;
  kind: string;
}

/** Bars start at `origin`, where a dashed line is drawn at `mark`. */
export interface BarChart extends Heading {
  rows: Bar[];
  scale: 'log' | 'linear';
  origin: number;
  mark: number;
  xTitle: string;
  legend: string;
}

const ESCAPES: Record<string, string> = { '&': '&amp;', '<': '&lt;', '>': '&gt;', '"': '&quot;' };
export const escapeMarkup = (text: unknown): string =>
  String(text).replace(/[&<>"]/g, (letter) => ESCAPES[letter] as string);

const PADDING = 10;
const HEADING_HEIGHT = 46;
const COLORS = ['#0072b2', '#e69f00', '#009e73', '#cc79a7', '#56b4e9', '#d55e00', '#999999'];

type Attributes = Record<string, string | number>;

const round = (value: number): number => Math.round(value * 100) / 100;

function element(tag: string, attributes: Attributes, content = ''): string {
  const list = Object.entries(attributes).map(
    ([name, value]) => ` ${name}="${typeof value === 'number' ? round(value) : escapeMarkup(value)}"`,
  );
  return content === '' ? `<${tag}${list.join('')}/>` : `<${tag}${list.join('')}>${content}</${tag}>`;
}

const text = (x: number, y: number, content: string, attributes: Attributes = {}): string =>
  element('text', { x, y, 'font-size': 11, ...attributes }, escapeMarkup(content));

const line = (x1: number, y1: number, x2: number, y2: number, attributes: Attributes = {}): string =>
  element('line', { x1, y1, x2, y2, stroke: '#e6e6e6', ...attributes });

/** An estimate: fonts differ, and nothing here can measure them. */
const textWidth = (content: string, size = 11): number => 0.62 * size * content.length;

function svg(width: number, height: number, { title, subtitle }: Heading, parts: string[]): string {
  const heading = [
    text(PADDING, 24, title, { 'font-size': 14, 'font-weight': 'bold' }),
    text(PADDING, 40, subtitle, { fill: '#555' }),
  ];
  const wide = Math.max(width, 2 * PADDING + textWidth(title, 14), 2 * PADDING + textWidth(subtitle));
  const size = { width: Math.ceil(wide), height: Math.ceil(height) };
  return element(
    'svg',
    {
      xmlns: 'http://www.w3.org/2000/svg',
      ...size,
      viewBox: `0 0 ${size.width} ${size.height}`,
      'font-family': 'sans-serif',
    },
    [element('rect', { ...size, fill: 'white' }), ...heading, ...parts].join('\n'),
  );
}

interface Axis {
  low: number;
  high: number;
  ticks: number[];
  /** Position in [0, 1]. */
  at(value: number): number;
}

/** From a multiple of 1, 2 or 5 times a power of ten to another, so that both ends of the values are inside. */
export function linearAxis(values: readonly number[]): Axis {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const rough = (most - least || Math.abs(most) || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5].find((factor) => factor * power >= rough * 0.8) ?? 10) * power;
  const [first, last] = [Math.floor(least / step + 1e-9), Math.ceil(most / step - 1e-9)];
  const count = Math.max(1, last - first);
  const ticks = Array.from({ length: count + 1 }, (_, i) => (first + i) * step);
  const [low, high] = [first * step, (first + count) * step];
  return { low, high, ticks, at: (value) => (value - low) / (high - low) };
}

/** The ticks are 1, 2 and 5 times powers of ten; of more than eight, only the powers. */
export function logAxis(values: readonly number[]): Axis {
  const [low, high] = [Math.min(...values) / 1.1, Math.max(...values) * 1.1];
  const powers: number[] = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); ++power) powers.push(10 ** power);
  const within = (tick: number) => tick >= low * 0.999 && tick <= high * 1.001;
  const all = powers.flatMap((power) => [power, 2 * power, 5 * power]).filter(within);
  const ticks = all.length > 8 ? powers.filter(within) : all;
  const range = Math.log(high / low) || 1;
  return { low, high, ticks, at: (value) => Math.log(value / low) / range };
}

const tickText = (value: number): string => String(Number(value.toPrecision(6)));

function symbol({ shape, color }: Look, x: number, y: number): string {
  if (shape === 'circle') return element('circle', { cx: x, cy: y, r: 3.5, fill: color });
  if (shape === 'square') return element('rect', { x: x - 3.2, y: y - 3.2, width: 6.4, height: 6.4, fill: color });
  return element('path', { d: `M${round(x)} ${round(y - 4)}l4 7h-8z`, fill: color });
}

/** Names with their symbols, from left to right. */
function lineLegend(lines: readonly Line[], x: number, y: number): string[] {
  const looks = new Map(lines.map(({ name, look }) => [name, look]));
  let left = x;
  return [...looks].flatMap(([name, look]) => {
    const at = left;
    left += textWidth(name) + 50;
    const stroke = { stroke: look.color, 'stroke-width': 2, 'stroke-dasharray': look.dash || 'none' };
    return [line(at, y, at + 24, y, stroke), symbol(look, at + 12, y), text(at + 30, y + 4, name)];
  });
}

export function lineChart(chart: LineChart): string {
  const { panels, columns, width, height, xs, xTitle, yTitle, scale, include, ownAxes } = chart;
  const [left, top, right, bottom] = [62, 26, 14, 42];
  const makeAxis = (lines: readonly Line[]): Axis => {
    const values = lines.flatMap(({ points }) => points.map(({ y }) => y));
    return scale === 'log' ? logAxis([...values, ...include]) : linearAxis([...values, ...include]);
  };
  const all = panels.flatMap(({ lines }) => lines);
  const shared = makeAxis(all);
  const [fullWidth, fullHeight] = [left + width + right, top + height + bottom];
  const parts = panels.flatMap(({ title, lines }, i) => {
    const x0 = PADDING + left + (i % columns) * fullWidth;
    const y0 = HEADING_HEIGHT + top + Math.floor(i / columns) * fullHeight;
    const axis = ownAxes ? makeAxis(lines) : shared;
    const xOf = (x: string) => x0 + ((xs.indexOf(x) + 0.5) / xs.length) * width;
    const yOf = (y: number) => y0 + height * (1 - axis.at(y));
    const drawn = [
      text(x0 + width / 2, y0 - 8, title, { 'font-size': 12, 'text-anchor': 'middle' }),
      ...axis.ticks.flatMap((tick) => [
        line(x0, yOf(tick), x0 + width, yOf(tick), tick === 0 ? { stroke: '#888' } : {}),
        text(x0 - 6, yOf(tick) + 4, tickText(tick), { 'text-anchor': 'end' }),
      ]),
      ...xs.flatMap((x) => [
        line(xOf(x), y0, xOf(x), y0 + height),
        text(xOf(x), y0 + height + 15, x, { 'text-anchor': 'middle' }),
      ]),
      element('rect', { x: x0, y: y0, width, height, fill: 'none', stroke: '#ccc' }),
      text(x0 + width / 2, y0 + height + 32, xTitle, { 'font-size': 12, 'text-anchor': 'middle' }),
    ];
    if (i % columns === 0) {
      const at = { x: x0 - 48, y: y0 + height / 2 };
      const turned = { 'font-size': 12, 'text-anchor': 'middle', transform: `rotate(-90 ${round(at.x)} ${at.y})` };
      drawn.push(text(at.x, at.y, yTitle, turned));
    }
    for (const { look, points } of lines) {
      const places = points.map(({ x, y }) => `${round(xOf(x))},${round(yOf(y))}`).join(' ');
      const stroke = { stroke: look.color, 'stroke-width': 2, 'stroke-dasharray': look.dash || 'none' };
      drawn.push(element('polyline', { points: places, fill: 'none', ...stroke }));
      drawn.push(...points.map(({ x, y }) => symbol(look, xOf(x), yOf(y))));
    }
    return drawn;
  });
  const end = HEADING_HEIGHT + Math.ceil(panels.length / columns) * fullHeight;
  parts.push(...lineLegend(all, PADDING + left, end + 8));
  const across = Math.min(columns, panels.length);
  return svg(2 * PADDING + across * fullWidth, end + 24, chart, parts);
}

/** From red over nearly white to blue. `part`: -1 to 1. */
function diverging(part: number): string {
  const end = part < 0 ? [178, 24, 43] : [33, 102, 172];
  const mix = end.map((channel) => Math.round(247 + (channel - 247) * Math.min(1, Math.abs(part))));
  return `rgb(${mix.join(',')})`;
}

export function cellChart(chart: CellChart): string {
  const { panels, xs, ys, xTitle, yTitle, most, legend } = chart;
  const [cellWidth, cellHeight, left, top, bottom, columns] = [46, 26, 62, 26, 42, 2];
  const [width, height] = [xs.length * cellWidth, ys.length * cellHeight];
  const [fullWidth, fullHeight] = [left + width + 20, top + height + bottom];
  const parts = panels.flatMap(({ title, cells }, i) => {
    const x0 = PADDING + left + (i % columns) * fullWidth;
    const y0 = HEADING_HEIGHT + top + Math.floor(i / columns) * fullHeight;
    const middle = { x: x0 - 46, y: y0 + height / 2 };
    return [
      text(x0 + width / 2, y0 - 8, title, { 'font-size': 12, 'text-anchor': 'middle' }),
      ...cells.flatMap(({ x, y, value }) => {
        const [cx, cy] = [x0 + xs.indexOf(x) * cellWidth, y0 + ys.indexOf(y) * cellHeight];
        const fill = Math.abs(value) > 0.7 * most ? 'white' : 'black';
        return [
          element('rect', { x: cx, y: cy, width: cellWidth, height: cellHeight, fill: diverging(value / most) }),
          text(cx + cellWidth / 2, cy + cellHeight / 2 + 4, value.toFixed(1), { 'text-anchor': 'middle', fill }),
        ];
      }),
      ...xs.map((x, j) => text(x0 + (j + 0.5) * cellWidth, y0 + height + 15, x, { 'text-anchor': 'middle' })),
      ...ys.map((y, j) => text(x0 - 6, y0 + (j + 0.5) * cellHeight + 4, y, { 'text-anchor': 'end' })),
      text(x0 + width / 2, y0 + height + 32, xTitle, { 'font-size': 12, 'text-anchor': 'middle' }),
      text(middle.x, middle.y, yTitle, {
        'font-size': 12,
        'text-anchor': 'middle',
        transform: `rotate(-90 ${round(middle.x)} ${round(middle.y)})`,
      }),
    ];
  });
  const end = HEADING_HEIGHT + Math.ceil(panels.length / columns) * fullHeight;
  const steps = 16;
  const x0 = PADDING + left;
  for (let step = 0; step <= steps; ++step)
    parts.push(element('rect', { x: x0 + step * 12, y: end, width: 12, height: 10, fill: diverging(step / 8 - 1) }));
  parts.push(
    text(x0, end + 24, `-${most}`),
    text(x0 + (steps + 1) * 12, end + 24, `${most}`, { 'text-anchor': 'end' }),
  );
  parts.push(text(x0 + (steps + 1) * 12 + 10, end + 9, legend));
  return svg(2 * PADDING + Math.min(columns, panels.length) * fullWidth, end + 36, chart, parts);
}

export function barChart(chart: BarChart): string {
  const { rows, scale, origin, mark, xTitle, legend } = chart;
  const width = 520;
  const kinds = [...new Set(rows.map(({ kind }) => kind))];
  const names = [...new Set(rows.map(({ label }) => label))];
  const grouped = names.length < rows.length;
  const barHeight = grouped ? 12 : 15;
  const groupHeight = grouped ? barHeight * kinds.length + 6 : barHeight + 4;
  const values = [...rows.map(({ value }) => value), origin, mark];
  const axis = scale === 'log' ? logAxis([...values, 0.7, 1.2]) : linearAxis(values);
  const left = PADDING + Math.max(...names.map((name) => textWidth(name))) + 8;
  const right = Math.max(...rows.map((row) => textWidth(row.text))) + 12;
  const top = HEADING_HEIGHT + 8;
  const height = names.length * groupHeight;
  const xOf = (value: number) => left + axis.at(value) * width;
  const yOf = ({ label, kind }: Bar) =>
    top + names.indexOf(label) * groupHeight + (grouped ? 3 + kinds.indexOf(kind) * barHeight : 2);
  const color = (kind: string) => COLORS[kinds.indexOf(kind) % COLORS.length] as string;
  const halo = { stroke: 'white', 'stroke-width': 4, 'paint-order': 'stroke' };
  const parts = [
    ...axis.ticks.flatMap((tick) => [
      line(xOf(tick), top, xOf(tick), top + height),
      text(xOf(tick), top + height + 15, tickText(tick), { 'text-anchor': 'middle' }),
    ]),
    ...names.map((name, i) => text(left - 8, top + (i + 0.5) * groupHeight + 4, name, { 'text-anchor': 'end' })),
    ...rows.map((row) => {
      const [from, to] = [origin, row.value].map(xOf).sort((a, b) => a - b) as [number, number];
      const size = { width: to - from, height: barHeight - 2 };
      return element('rect', { x: from, y: yOf(row), ...size, fill: color(row.kind) });
    }),
    line(xOf(mark), top, xOf(mark), top + height, { stroke: '#333', 'stroke-dasharray': '4 3' }),
    ...rows.map((row) => {
      const x = xOf(Math.max(origin, row.value)) + 4;
      return text(x, yOf(row) + barHeight - 4, row.text, { 'font-size': 10.5, ...halo });
    }),
    text(left + width / 2, top + height + 32, xTitle, { 'font-size': 12, 'text-anchor': 'middle' }),
  ];
  const end = top + height + 48;
  parts.push(text(left, end, `${legend}:`));
  kinds.forEach((kind, i) => {
    const y = end + 8 + i * 16;
    parts.push(element('rect', { x: left, y, width: 10, height: 10, fill: color(kind) }));
    parts.push(text(left + 16, y + 9, kind));
  });
  return svg(left + width + right + PADDING, end + 16 + kinds.length * 16, chart, parts);
}
