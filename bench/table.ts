// Figures as an aligned table for the terminal.
import type { Figure } from './figure';

const HEADER = ['figure', 'measured', 'limit', 'share', 'target', ''];

/** Three significant digits, or all digits of a larger integer part. */
export function formatNumber(value: number): string {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value) || 1)));
  return value.toFixed(Math.min(digits, 4));
}

function formatTarget(target: Figure['target']): string {
  if (target === null) return '';
  const format = (bound: number) =>
    target.on === 'share' ? `${formatNumber(bound * 100).replace(/\.0+$/, '')} %` : String(bound);
  const bounds = [];
  if (target.atLeast !== undefined) bounds.push(`>= ${format(target.atLeast)}`);
  if (target.atMost !== undefined) bounds.push(`<= ${format(target.atMost)}`);
  return bounds.join(', ');
}

function formatMet({ target, met }: Figure): string {
  if (target === null) return '';
  if (met === null) return 'NO LIMIT';
  return met ? 'ok' : 'MISSED';
}

function row(figure: Figure): string[] {
  const unit = figure.unit === '' ? '' : ` ${figure.unit}`;
  return [
    figure.name,
    `${formatNumber(figure.value)}${unit}`,
    figure.limit === null ? '-' : `${formatNumber(figure.limit)}${unit}`,
    figure.share === null ? '' : `${(figure.share * 100).toFixed(1)} %`,
    formatTarget(figure.target),
    formatMet(figure),
  ];
}

/** Rows of cells as aligned lines; no newline at the end. Columns of text are aligned at the left, others at the right. */
export function alignTable(rows: readonly (readonly string[])[], isText: (column: number) => boolean): string {
  const columns = Math.max(...rows.map(({ length }) => length));
  const widths = Array.from({ length: columns }, (_, i) => Math.max(...rows.map((row) => row[i]?.length ?? 0)));
  const align = (cell: string, column: number) => {
    const width = widths[column] as number;
    return isText(column) ? cell.padEnd(width) : cell.padStart(width);
  };
  return rows.map((row) => row.map(align).join('  ').trimEnd()).join('\n');
}

/** The table, one line for each figure; no newline at the end. */
export function formatTable(figures: readonly Figure[]): string {
  return alignTable([HEADER, ...figures.map(row)], (column) => column === 0 || column >= 4);
}
