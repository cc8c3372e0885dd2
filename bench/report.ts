// `bench report FILE...`: result files as one page, with the plots as SVG files beside it.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { parseArgs } from 'node:util';
import { type DrawnPlot, groupFigures, renderPage, type Section, slug } from './report_page';
import { plotsOf } from './report_plots';
import { renderPlots } from './report_render';
import { deviceName, readResult } from './report_result';

const USAGE = `Usage: bench report FILE.json... [--out FILE.html]

Options:
  --out FILE   the page (default: the first file's name with .html); plots go beside it, as NAME-GROUP-PLOT.svg
  -h, --help   this text`;

const OPTIONS = { out: { type: 'string' }, help: { type: 'boolean', short: 'h' } } as const;

/** Writes the page and the plots of some result files. */
export async function buildReport(files: readonly string[], page: string): Promise<string[]> {
  const results = files.map(readResult);
  const stem = path.basename(page, path.extname(page));
  const sections: Section[] = [];
  const jobs: { section: Section; plot: ReturnType<typeof plotsOf>[number]; file: string }[] = [];
  for (const [group, rows] of groupFigures(results)) {
    const section: Section = { group, rows, plots: [] };
    sections.push(section);
    results.forEach((result, i) => {
      const figures = rows.filter((row) => row.result === result).map(({ figure }) => figure);
      if (figures.length === 0) return;
      const run = results.length > 1 ? `run ${i + 1}: ` : '';
      for (const plot of plotsOf(group, figures, run + deviceName(result))) {
        const parts = [stem, slug(group), plot.name, ...(results.length > 1 ? [`run${i + 1}`] : [])];
        jobs.push({ section, plot, file: `${parts.join('-')}.svg` });
      }
    });
  }
  const svgs = await renderPlots(jobs.map(({ plot }) => plot.spec));
  const folder = path.dirname(page);
  fs.mkdirSync(folder, { recursive: true });
  jobs.forEach(({ section, plot: { caption }, file }, i) => {
    const drawn: DrawnPlot = { svg: svgs[i] as string, caption, file };
    section.plots.push(drawn);
    fs.writeFileSync(path.join(folder, file), `${drawn.svg}\n`);
  });
  fs.writeFileSync(page, renderPage(results, sections));
  return [page, ...jobs.map(({ file }) => path.join(folder, file))];
}

/** Resolves to the exit status: 0, or 1 for wrong arguments, unreadable files, or vega missing. */
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
  if (first === undefined) return failed('which result files?', `\n${USAGE}\n`);
  const page = path.resolve(values.out ?? `${first.replace(/\.json$/, '')}.html`);
  try {
    for (const file of await buildReport(positionals, page))
      process.stderr.write(`written to ${path.relative(process.cwd(), file) || file}\n`);
    return 0;
  } catch (error) {
    return failed((error as Error).message, '');
  }
}

function parse(args: string[]) {
  return parseArgs({ args, options: OPTIONS, allowPositionals: true });
}
