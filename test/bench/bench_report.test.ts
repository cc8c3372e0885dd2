// The benchmark's reports on synthetic results: the page has every figure and needs no other file,
// and compare finds the changes.
import * as fs from 'node:fs';
import * as path from 'node:path';
import { compareReports, compareResults, formatComparison } from '../../bench/compare';
import { groupFigures, renderPage, slug } from '../../bench/report_page';
import { plotsOf } from '../../bench/report_plots';
import { formatValue, type Result, spreadOf } from '../../bench/report_result';
import { collect, savings } from '../../bench/report_savings';
import { linearAxis, logAxis } from '../../bench/report_svg';
import { temporaryDirectories } from '../support/checkpoints';
import { builtCli, runNode } from '../support/children';
import { made, syntheticResult } from './bench_report_fixture';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const plain = (html: string) =>
  html
    .replace(/&lt;/g, '<')
    .replace(/&gt;/g, '>')
    .replace(/&quot;/g, '"')
    .replace(/&amp;/g, '&');

/** The cells of the rows that contain a figure, as text. */
function rowsOf(page: string): string[][] {
  return [...page.matchAll(/<tr>(.*?)<\/tr>/gs)].map(([, row]) =>
    [...(row as string).matchAll(/<td[^>]*>(.*?)<\/td>/gs)].map(([, cell]) => plain(cell as string)),
  );
}

function write(result: Result): string {
  const file = path.join(directories.make(), 'result.json');
  fs.writeFileSync(file, JSON.stringify(result));
  return file;
}

/** A copy of the result with the changes that `change` returns for each figure. */
function changed(result: Result, change: (figure: Result['figures'][number]) => Partial<Result['figures'][number]>) {
  return { ...result, figures: result.figures.map((figure) => ({ ...figure, ...change(figure) })) };
}

/** A copy of a figure with its value and samples multiplied by `factor`. */
function scaled(figure: Result['figures'][number], factor: number): Result['figures'][number] {
  const scale = (stats: { median: number; min: number; max: number; count: number }) => ({
    median: stats.median * factor,
    min: stats.min * factor,
    max: stats.max * factor,
    count: stats.count,
  });
  const samples = Object.fromEntries(Object.entries(figure.samples).map(([name, stats]) => [name, scale(stats)]));
  return { ...figure, value: figure.value * factor, samples };
}

const built = path.join(path.dirname(builtCli), '..', 'bench');

/** Runs the built report of a folder in a separate process. */
const report = (args: string[], folder = built) =>
  runNode([
    '-e',
    `require(${JSON.stringify(path.join(folder, 'report.js'))}).writeReport(process.argv.slice(1)).then((status) => { process.exitCode = status; })`,
    '--',
    ...args,
  ]);

describe('report', () => {
  const folder = directories.make();
  const page = path.join(folder, 'page.html');
  const result = syntheticResult();
  beforeAll(async () => {
    const outcome = await report([write(result), '--out', page]);
    expect(outcome).toMatchObject({ status: 0, stdout: '' });
    expect(outcome.stderr).not.toMatch(/WARN|Error/);
  });

  it("shows every figure with value, unit, spread, limit, share and the paper's value", () => {
    const rows = rowsOf(fs.readFileSync(page, 'utf8'));
    for (const figure of result.figures) {
      const row = rows.find(([name]) => name === figure.name);
      const spread = spreadOf(figure) as { min: number; max: number; count: number };
      expect(row).toEqual(
        expect.arrayContaining([
          figure.name,
          formatValue(figure.value),
          figure.unit,
          `${formatValue(spread.min)} to ${formatValue(spread.max)} (${spread.count})`,
          figure.limit === null ? '' : formatValue(figure.limit),
          figure.share === null ? '' : `${(figure.share * 100).toFixed(1)} %`,
          ...(figure.paper == null ? [] : [formatValue(figure.paper)]),
        ]),
      );
    }
  });

  it('shows where, with what and how it was measured, and the missing peers', () => {
    const text = plain(fs.readFileSync(page, 'utf8'));
    for (const word of ['synthetic processor, 2 cores', 'bench synthetic <not a run>', '2000-01-01T00:00:00.000Z'])
      expect(text).toContain(word);
    for (const word of ['0123456789abcdef', 'node v0.0.0', 'FlexAttention', 'no PyTorch', 'a made-up reason'])
      expect(text).toContain(word);
  });

  it('needs no other file, and uses each id only once', () => {
    const text = fs.readFileSync(page, 'utf8');
    expect(text.replace(/xmlns(:\w+)?="[^"]*"/g, '')).not.toMatch(/https?:|src=|@import|<script|<link|url\((?!#)/);
    const ids = [...text.matchAll(/\bid="([^"]*)"/g)].map(([, id]) => id as string);
    expect(new Set(ids).size).toBe(ids.length);
    for (const [, id] of text.matchAll(/url\(#([^)]*)\)/g)) expect(ids).toContain(id);
  });

  it('writes each plot to a file next to the page, which links to it', () => {
    const text = fs.readFileSync(page, 'utf8');
    const files = fs.readdirSync(folder).filter((name) => name.endsWith('.svg'));
    const plots = [
      'ket-time',
      'ket-saving',
      'ceet-grid',
      'ceet-cache',
      'ceet-attention',
      'ceet-augmented-q',
      'ceet-total',
    ];
    expect(files.sort()).toEqual([...plots, 'kernels-share', 'peers-peers'].map((name) => `page-${name}.svg`).sort());
    for (const file of files) {
      expect(text).toContain(`href="${file}"`);
      expect(fs.readFileSync(path.join(folder, file), 'utf8')).toMatch(/^<svg.*<\/svg>\n$/s);
    }
    const time = fs.readFileSync(path.join(folder, 'page-ket-time.svg'), 'utf8');
    for (const word of ['paper (H100)', 'limit', 'ours', 'kernel time, ms', 'prefix, tokens', 'STD 32/16/16', '32k'])
      expect(time).toContain(word);
  });

  it('prints what is wrong with its arguments and files', async () => {
    const bad = write({} as Result);
    const told = async (...args: string[]) => ({ ...(await report(args)), signal: undefined });
    expect(await told()).toMatchObject({ status: 1, stderr: expect.stringContaining('no result file is given') });
    expect(await told(bad)).toMatchObject({
      status: 1,
      stderr: expect.stringContaining('is not a result of the bench'),
    });
    expect(await told('--format=x')).toMatchObject({ status: 1, stderr: expect.stringContaining('--format') });
  });

  it('needs no package and no other part of the project', async () => {
    const elsewhere = directories.make(); // no folder above has node_modules
    for (const name of fs.readdirSync(built))
      if (/^(report|shapes).*\.js$/.test(name)) fs.copyFileSync(path.join(built, name), path.join(elsewhere, name));
    const copy = path.join(elsewhere, 'page.html');
    const { status, stderr } = await report([write(result), '--out', copy], elsewhere);
    expect([status, stderr]).toEqual([0, expect.stringContaining('page.html')]);
    const [one, other] = [page, copy].map((file) => fs.readFileSync(file, 'utf8'));
    expect(one).toBe(other);
  });

  it('begins with a summary in words that explains KET and CEET', () => {
    const text = plain(fs.readFileSync(page, 'utf8'));
    const start = text.slice(text.indexOf('<h1>'), text.indexOf('<table'));
    for (const words of [
      'measured on synthetic processor (2 cores, 16.0 GiB) with diffqkv 0.0.0 on 2000-01-01',
      '1 measurement of it could not be made',
      '3 of 4 targets are met',
      'KET is the kernel execution time',
      'CEET is the CUDA event elapsed time',
      'KET, total: Sigma saves',
      'CEET, total: Sigma saves',
    ])
      expect(start).toContain(words);
    const results = [...start.matchAll(/<li>(.*?)<\/li>/g)];
    expect(results.length).toBe(4);
  });

  it('shows the reason for a share above 100 % and for a spread below 0', () => {
    const render = (...figures: Result['figures']) => {
      const results = [{ ...result, figures }];
      return renderPage(
        results,
        [...groupFigures(results)].map(([group, rows]) => ({ group, rows, plots: [] })),
      );
    };
    const times = { a: { median: 6, min: 5, max: 9, count: 3 }, b: { median: 8, min: 7, max: 12, count: 3 } };
    const normal = made({ name: 'normal', value: 10 });
    const fast = made({ name: 'fast', value: 10, share: 1.03 });
    const ratio = made({ name: 'ratio', value: 0.75, share: 1.1, limitName: 'bytes over bytes', samples: times });
    const saving = made({ name: 'saving', value: 25, unit: '%', samples: times });
    expect(render(normal)).not.toMatch(/share above 100 %:|spread below 0:/);
    expect(render(normal, fast)).toMatch(/A share above 100 %: the limit is a measurement too/);
    expect(render(normal, ratio)).toMatch(/A share above 100 %: the limit of a ratio or saving/);
    expect(render(normal, saving)).toMatch(/A spread below 0: the value is computed from two times/);
  });

  it('computes the spread of ratios and savings from the extremes of both times', () => {
    const samples = { a: { median: 6, min: 5, max: 9, count: 3 }, b: { median: 8, min: 7, max: 12, count: 4 } };
    const spread = (value: number) => spreadOf(made({ name: 'x', value, samples }));
    expect(spread(6 / 8)).toEqual({ min: 5 / 12, max: 9 / 7, count: 3 });
    expect(spread(8 / 6)).toEqual({ min: 7 / 9, max: 12 / 5, count: 3 });
    expect(spread(25)).toEqual({ min: 100 * (1 - 9 / 7), max: 100 * (1 - 5 / 12), count: 3 });
    expect(spread(6)).toEqual({ min: 5, max: 9, count: 3 });
    expect(spread(40)).toEqual({ min: 0, max: 80, count: 3 }); // computed in another way: 40 (1 - 1) to 40 (1 + 1)
  });

  it('labels each run if there are several', () => {
    const results = [syntheticResult('a.json'), { ...syntheticResult('b.json'), suite: 'other' }];
    const sections = [...groupFigures(results)].map(([group, rows]) => ({ group, rows, plots: [] }));
    const rows = rowsOf(renderPage(results, sections)).filter(
      (row) => row[1] === 'peers' || /decode$/.test(row[1] ?? ''),
    );
    expect(rows.map(([run]) => run).sort()).toEqual(['1', '1', '1', '2', '2', '2']);
    expect(sections.map(({ group }) => slug(group))).toEqual(['ket', 'ceet', 'kernels', 'peers']);
  });
});

describe('axes', () => {
  it('include all values and have round ticks', () => {
    const axis = linearAxis([3, 97]);
    expect([axis.low, axis.high, axis.ticks]).toEqual([0, 100, [0, 20, 40, 60, 80, 100]]);
    expect([axis.at(0), axis.at(50), axis.at(100)]).toEqual([0, 0.5, 1]);
    expect(linearAxis([-7, 12]).ticks).toEqual([-10, -5, 0, 5, 10, 15]);
    expect(linearAxis([4, 4]).ticks.length).toBeGreaterThan(1);
    const log = logAxis([3, 700]);
    expect(log.ticks).toEqual([5, 10, 20, 50, 100, 200, 500]);
    expect(log.at(3)).toBeGreaterThan(0);
    expect(log.at(700)).toBeLessThan(1);
    expect(logAxis([1, 1e6]).ticks).toEqual([1, 10, 100, 1e3, 1e4, 1e5, 1e6]);
  });
});

describe('savings', () => {
  const at = (what: string, who: string) => (point: { what: string; who: string }) =>
    point.what === what && point.who === who;

  it('equal those of table 15 if the paper has them', () => {
    const points = savings(collect(syntheticResult().figures.filter(({ group }) => group === 'ket')));
    const paper = points.filter(at('split', 'paper (H100)')).map(({ value }) => value.toFixed(1));
    expect(paper).toEqual(['1.2', '25.4', '26.3', '27.3']); // the paper: 1.17, 25.33, 26.30, 27.21
    expect(points.filter(at('total', 'limit')).map(({ value }) => value)).toEqual([37.5, 37.5, 37.5, 37.5]);
  });

  it('come from figures in % if there are any', () => {
    const heads = { sigma: '32/4/16', std: '32/16/16' };
    const times = Object.values(heads).map((name) =>
      made({ name, value: 8, group: 'ceet', at: { heads: name, output: 2, prefix: 2, what: 'cache' } }),
    );
    const place = { output: 2, prefix: 2, what: 'saving, cache' };
    const saving = made({ name: 'saving', value: 31, unit: '%', limit: 36, paper: 33, group: 'ceet', at: place });
    const points = savings(collect([...times, saving]));
    expect(points.map(({ what, who, value }) => [what, who, value])).toEqual([
      ['cache', 'ours', 31],
      ['cache', 'paper (H100)', 33],
      ['cache', 'limit', 36],
    ]);
  });

  it('are costs if STD has none of the kind', () => {
    const figures = syntheticResult().figures.filter(({ group }) => group === 'ceet');
    const costs = savings(collect(figures)).filter(({ what }) => what === 'augmented Q');
    expect(costs.length).toBe(36);
    for (const { value } of costs) expect(value).toBeLessThan(0);
  });

  it('leave a group without places to the plot of shares', () => {
    const plots = plotsOf('ket', [made({ name: 'ket of another kind', value: 1 })], 'nowhere');
    expect(plots.map(({ name }) => name)).toEqual(['share']);
  });
});

describe('compare', () => {
  const before = syntheticResult('a.json');
  const slow = 'ket 32/4/16, prefix 32768: total';
  const fast = 'kernels: rms_norm 512 x 2048';
  const moved = (after: Result) =>
    compareResults(before, after)
      .changes.filter(({ verdict }) => verdict !== 'same')
      .map(({ after: { name }, verdict }) => [name, verdict]);

  it('reports only changes beyond the spread', () => {
    const after = changed(before, (figure) => {
      if (figure.name === slow) return scaled(figure, 1.1); // the spread is 2 %
      return scaled(figure, figure.name === fast ? 1.2 : 1.03);
    });
    expect(moved(after).sort()).toEqual([
      [fast, 'better'],
      [slow, 'worse'],
    ]);
    expect(moved(before)).toEqual([]);
  });

  it('uses the best sample, so that one disturbed sample hides nothing', () => {
    const disturbed = (figure: Result['figures'][number]) => ({
      samples: { ms: { ...(figure.samples.ms as { median: number; min: number; count: number }), max: 1e9 } },
    });
    const one = changed({ ...before, figures: before.figures.slice(0, 1) }, disturbed);
    const after = changed(one, (figure) => ({ ...scaled(figure, 1.1) }));
    expect(compareResults(one, after).changes.map(({ verdict }) => verdict)).toEqual(['worse']);
  });

  it('requires both signs for few samples, and judges nothing by two', () => {
    const of = (median: number, min: number, max: number, count: number): Result => ({
      ...before,
      figures: [made({ name: 'x', value: median, samples: { ms: { median, min, max, count } } })],
    });
    const verdict = (a: Result, b: Result) => compareResults(a, b).changes[0]?.verdict;
    expect(verdict(of(100, 99, 101, 3), of(110, 109, 111, 3))).toBe('worse');
    // The samples do not overlap, but the difference is small.
    expect(verdict(of(100, 90, 101, 3), of(110, 102, 111, 3))).toBe('same');
    expect(verdict(of(100, 90, 101, 5), of(110, 102, 111, 5))).toBe('worse');
    // The difference is large, but the samples overlap.
    expect(verdict(of(100, 99, 111, 3), of(110, 109, 111, 3))).toBe('same');
    expect(verdict(of(100, 99.9, 100.1, 9), of(100.9, 100.8, 101, 9))).toBe('same'); // below 1 %
    expect(verdict(of(100, 100, 100, 2), of(200, 200, 200, 2))).toBe('unjudged');
    expect(verdict(of(100, 99, 101, 7), { ...before, figures: [made({ name: 'x', value: 200, samples: {} })] })).toBe(
      'unjudged',
    );
  });

  it('reports new, missing and incomparable figures', () => {
    const extra = made({ name: 'a new one', value: 1 });
    const after = { ...before, figures: [...before.figures.slice(1), extra] };
    const comparison = compareResults(before, after);
    expect(comparison.added.map(({ name }) => name)).toEqual(['a new one']);
    expect(comparison.missing.map(({ name }) => name)).toEqual([before.figures[0]?.name]);

    const elsewhere = { ...before, machine: { ...before.machine, cpu: 'another processor' } };
    const unlike = compareResults(before, elsewhere);
    expect(unlike.changes.every(({ verdict }) => verdict === 'unjudged')).toBe(true);
    expect(unlike.notes).toContain('processor: was synthetic processor, is another processor');
    expect(formatComparison(unlike)).toContain('another machine or device');
  });

  it('fails with --check if a figure got worse or if no figure could be judged', async () => {
    const written: string[] = [];
    const spies = [process.stdout, process.stderr].map((stream) =>
      jest.spyOn(stream, 'write').mockImplementation((text) => written.push(String(text)) > 0),
    );
    try {
      const worse = write(changed(before, (figure) => scaled(figure, figure.name === slow ? 1.5 : 1)));
      const better = write(changed(before, (figure) => scaled(figure, figure.name === slow ? 0.5 : 1)));
      const elsewhere = write({ ...before, machine: { ...before.machine, cores: 64 } });
      const base = write(before);
      expect(await compareReports([base, worse, '--check'])).toBe(1);
      expect(await compareReports([base, worse])).toBe(0);
      expect(await compareReports([base, better, '--check'])).toBe(0);
      expect(await compareReports([base, elsewhere, '--check'])).toBe(1);
      expect(await compareReports([base])).toBe(1);
      expect(await compareReports([base, `${base}.gone`])).toBe(1);
    } finally {
      for (const spy of spies) spy.mockRestore();
    }
    expect(written.join('')).toContain(`worse     1.500x  ${slow}: 242 -> 363 ms (spread 2.0 %; spread 2.0 %)`);
  });
});
