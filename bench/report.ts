// `bench report FILE...`: one HTML page of result files. Each plot is also written as an SVG file.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import { type DrawnPlot, groupFigures, renderPage, type Section, slug } from './report_page';
import { plotsOf } from './report_plots';
import { deviceName, readResult } from './report_result';

const USAGE = `Usage: bench report FILE.json... [--out FILE.html]

Options:
  --out FILE   the page (default: the name of the first file with .html). The plots are also
               written to its folder, as NAME-GROUP-PLOT.svg
  -h, --help   print this text`;

const OPTIONS = { out: { type: 'string' }, help: { type: 'boolean', short: 'h' } } as const;

/** Writes the page and the plots of some result files. Returns the files. */
export function buildReport(files: readonly string[], page: string): string[] {
  const results = files.map(readResult);
  const stem = path.basename(page, path.extname(page));
  const folder = path.dirname(page);
  fs.mkdirSync(folder, { recursive: true });
  const written = [page];
  const sections: Section[] = [];
  for (const [group, rows] of groupFigures(results)) {
    const plots: DrawnPlot[] = [];
    results.forEach((result, i) => {
      const figures = rows.filter((row) => row.result === result).map(({ figure }) => figure);
      if (figures.length === 0) return;
      const run = results.length > 1 ? `run ${i + 1}: ` : '';
      for (const { name, caption, svg } of plotsOf(group, figures, run + deviceName(result))) {
        const parts = [stem, slug(group), name, ...(results.length > 1 ? [`run${i + 1}`] : [])];
        const file = `${parts.join('-')}.svg`;
        fs.writeFileSync(path.join(folder, file), `${svg}\n`);
        written.push(path.join(folder, file));
        plots.push({ svg, caption, file });
      }
    });
    sections.push({ group, rows, plots });
  }
  fs.writeFileSync(page, renderPage(results, sections));
  return written;
}

/** Resolves to the exit status: 0, or 1 for wrong arguments or unreadable files. */
export async function writeReport(argv: string[]): Promise<number> {
  const failed = (message: string, usage: string) => {
    process.stderr.write(`bench report: ${message}\n${usage}`);
    return 1;
  };
  let parsed: ReturnType<typeof parse>;
  try {
    parsed = parse(argv);
  } catch (error) {
    return failed((error as Error).message, `\n${USAGE}\n`);
  }
  const { values, positionals } = parsed;
  if (values.help) {
    process.stdout.write(`${USAGE}\n`);
    return 0;
  }
  const [first] = positionals;
  if (first === undefined) return failed('no result file is given', `\n${USAGE}\n`);
  const page = path.resolve(values.out ?? `${first.replace(/\.json$/, '')}.html`);
  try {
    for (const file of buildReport(positionals, page))
      process.stderr.write(`written to ${path.relative(process.cwd(), file) || file}\n`);
    return 0;
  } catch (error) {
    return failed((error as Error).message, '');
  }
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true });
}
