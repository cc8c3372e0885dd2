// The times of Sigma and STD at each place of the grids of ket and ceet, and the savings of Sigma.
//
// A figure of ket has at { heads, prefix, what: 'total' | 'split' | 'combine' }. A figure of ceet has at { heads, output,
// prefix, what: 'total' | 'cache' | 'attention' | 'cache and attention' | 'augmented Q' }. Both are times. A saving is the
// figure in % at the same place without heads (what: 'saving' or 'saving, cache'), or else computed from the times.
import type { Figure } from './figure';

export const PAPER = 'paper (H100)';
export const LIMIT = 'limit';
export const OURS = 'ours';
const MS: Record<string, number> = { ns: 1e-6, us: 1e-3, µs: 1e-3, ms: 1, s: 1e3 };

export interface Point {
  what: string;
  prefix: number;
  output: number;
  who: string;
  value: number;
}

type Times = Map<string, { sigma?: Figure; std?: Figure; saving?: Figure }>;

/** Sigma has fewer K heads than V heads; STD has equal numbers. */
function modelOf({ at }: Figure): 'sigma' | 'std' | null {
  const heads = String(at?.heads ?? '');
  const [, k, v] = heads.split('/').map(Number);
  if (k && v) return k < v ? 'sigma' : 'std';
  return /sigma/i.test(heads) ? 'sigma' : /std/i.test(heads) ? 'std' : null;
}

export const place = ({ at }: Figure): Pick<Point, 'what' | 'prefix' | 'output'> => ({
  what: at?.what === undefined || at.what === 'saving' ? 'total' : String(at.what).replace(/^saving[:,]? */, ''),
  prefix: Number(at?.prefix ?? Number.NaN),
  output: Number(at?.output ?? 0),
});

const key = (figure: Figure): string => JSON.stringify(place(figure));

export function collect(figures: readonly Figure[]): Times {
  const times: Times = new Map();
  for (const figure of figures) {
    const model = figure.unit === '%' ? 'saving' : figure.unit in MS ? modelOf(figure) : null;
    if (model === null || Number.isNaN(place(figure).prefix)) continue;
    times.set(key(figure), { ...times.get(key(figure)), [model]: figure });
  }
  return times;
}

/** The limit of the saving by the number of K and V heads: 37.5 % for 32/4/16 against 32/16/16. */
function savingLimit(sigma?: Figure, std?: Figure): number {
  const rows = [sigma, std].map((figure) => String(figure?.at?.heads ?? '').split('/'));
  const [few, many] = rows.map(([, k, v]) => Number(k) + Number(v));
  return few && many ? 100 * (1 - few / many) : 37.5;
}

export const ms = (figure: Figure, value = figure.value): number => value * (MS[figure.unit] as number);

/** Savings in %, by place and who. Of a part that STD does not have, such as augmented Q, the cost in % of STD's total, below 0. */
export function savings(times: Times): Point[] {
  const points: Point[] = [];
  for (const [at, { sigma, std, saving }] of times) {
    const where = JSON.parse(at) as ReturnType<typeof place>;
    const add = (who: string, value: number | null | undefined) => {
      if (value !== null && value !== undefined && Number.isFinite(value)) points.push({ ...where, who, value });
    };
    const of = (pick: (figure: Figure) => number | null | undefined): number | null => {
      const [less, more] = [sigma && pick(sigma), std && pick(std)];
      if (typeof less !== 'number') return null;
      if (typeof more === 'number' && more > 0) return 100 * (1 - less / more);
      const total = times.get(JSON.stringify({ ...where, what: 'total' }))?.std;
      const whole = total && pick(total);
      return where.what === 'total' || typeof whole !== 'number' ? null : (-100 * less) / whole;
    };
    const ours = saving ? saving.value : of((figure) => ms(figure));
    if (ours === null) continue;
    add(OURS, ours);
    add(PAPER, saving?.paper ?? of(({ paper, unit }) => (paper == null ? null : paper * (MS[unit] as number))));
    if (!/augmented/i.test(where.what)) add(LIMIT, saving?.limit ?? savingLimit(sigma, std));
  }
  return points.sort((a, b) => a.prefix - b.prefix || a.output - b.output);
}
