// The benchmark's arithmetic, timing and runs: stopped, resumed, and in a separate process.

import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import {
  cacheBytes,
  decodeFlops,
  layerWeights,
  modelPrefillFlops,
  outputLengths,
  prefillFlops,
  rowBytes,
  saving,
  selectiveBytes,
  stepBytes,
  sumOver,
} from '../../bench/arithmetic';
import { type Figure, figure } from '../../bench/figure';
import type { Limits } from '../../bench/limits';
import { interleaveFor, summarize } from '../../bench/measure';
import { formatDuration, Progress, timeLeft } from '../../bench/progress';
import { newResult, type Result, resumeFrom } from '../../bench/result';
import { runSuites } from '../../bench/run';
import { headShape, lengthName, SIGMA_HEADS, STD_HEADS, shapeName } from '../../bench/shapes';
import type { Cell, Suite } from '../../bench/suite';
import { ceetGrid } from '../../bench/suites/ceet';
import { SAVING_LIMIT } from '../../bench/suites/ket';
import { fittingLayers } from '../../bench/suites/model_holder';
import { lastLevelCache } from '../../bench/tensors';
import { limitOf } from '../../bench/work';
import { type DeviceInfo, listDevices, type ModelConfig } from '../../lib/index';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const cpu = listDevices().find(({ kind }) => kind === 'cpu') as DeviceInfo;
const emulated = listDevices().find(({ id, usable }) => id === 'emulated' && usable);
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'diffqkv-bench-'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const stats = (value: number) => ({ median: value, min: value, max: value, count: 1 });

/** The configuration of Sigma-1.5B as a loaded model reports it. */
const SIGMA_15B: ModelConfig = {
  architecture: 'sigma',
  hiddenSize: 2048,
  intermediateSize: 6144,
  augQSize: 3072,
  numLayers: 26,
  numWindowLayers: 0,
  vocabSize: 128256,
  ...SIGMA_HEADS,
  headDimK: 64,
  vSharesK: false,
  ropeTheta: 50000,
  rmsNormEps: 1e-6,
  maxPositionEmbeddings: 32768,
  tieWordEmbeddings: true,
  eosTokenIds: [],
};

describe('bytes and FLOPs', () => {
  it('counts cache rows, including scales', () => {
    expect(rowBytes('bf16', 64)).toBe(128);
    expect(rowBytes('f32', 64)).toBe(256);
    expect(rowBytes('i8', 64)).toBe(66);
    expect(rowBytes('f8e4m3', 128)).toBe(130);
  });

  it("counts a token's K and V: Sigma saves 37.5 %", () => {
    expect(cacheBytes(SIGMA_HEADS)).toBe(20 * 128);
    expect(cacheBytes(STD_HEADS)).toBe(32 * 128);
    expect(cacheBytes(SIGMA_HEADS, 'i8', 'bf16')).toBe(4 * 66 + 16 * 128);
    expect(saving(cacheBytes(SIGMA_HEADS), cacheBytes(STD_HEADS))).toBe(37.5);
    expect(SAVING_LIMIT).toBe(37.5);
  });

  it('counts at most the existing rows for selective V', () => {
    expect(selectiveBytes(SIGMA_HEADS, 32768, 100)).toBe(32768 * 4 * 128 + 3200 * 128);
    expect(selectiveBytes(SIGMA_HEADS, 10, 100)).toBe(10 * cacheBytes(SIGMA_HEADS));
  });

  it('counts attention like a loop over the pairs of query and key', () => {
    const heads = headShape([8, 1, 4], 32);
    let pairs = 0;
    for (let query = 0; query < 7; ++query) for (let key = 0; key <= query; ++key) ++pairs;
    expect(prefillFlops(heads, 7, true)).toBe(pairs * 8 * (2 * 32 + 2 * 32));
    expect(prefillFlops(heads, 7, false)).toBe(7 * decodeFlops(heads, 7));
  });

  it("counts whole models: 26 layers of Sigma-1.5B are the paper's 2.02 B parameters, with q_proj folded", () => {
    const { keyValue, rest } = layerWeights(SIGMA_15B);
    const unfolded = 2048 * 2048; // q_proj, which is folded into gate and up of augmented Q
    const parameters = 26 * (keyValue + rest + unfolded) + 128256 * 2048;
    expect(parameters / 1e9).toBeCloseTo(2.02, 2);
    const linear = 2 * 512 * 26 * (keyValue + rest);
    const whole = modelPrefillFlops(SIGMA_15B, 512);
    expect(whole).toBeGreaterThan(linear * 0.96);
    expect(whole).toBeLessThan(linear * 1.05);
    expect(stepBytes(SIGMA_15B, 1000, [3, 4])).toBe(1000 + 7 * 26 * cacheBytes(SIGMA_HEADS));
    const windowed = { ...SIGMA_15B, numWindowLayers: 6, slidingWindow: 3 };
    expect(stepBytes(windowed, 0, [2, 4])).toBe((6 * 20 + 5 * 6) * cacheBytes(SIGMA_HEADS));
    const pairs = 1 + 2 + 3 * 510; // of 512 queries with a window of 3 keys
    const perPair = decodeFlops(SIGMA_HEADS, 1);
    const saved = 6 * (prefillFlops(SIGMA_HEADS, 512, true) - pairs * perPair);
    expect(modelPrefillFlops(windowed, 512)).toBeCloseTo(whole - saved, -3);
    const untied = { ...SIGMA_15B, tieWordEmbeddings: false };
    expect(stepBytes(untied, 2 * 128256 * 2048 + 5, [])).toBe(5);
  });

  it('counts for Sigma-10B only the layers that fit in memory', () => {
    expect(fittingLayers('sigma-10b', 80e9)).toBe(32);
    expect(fittingLayers('sigma-1.5b', 23e9)).toBe(26);
    const some = fittingLayers('sigma-10b', 12e9);
    expect(some).toBeGreaterThan(8);
    expect(some).toBeLessThan(20);
    expect(fittingLayers('sigma-10b', 1)).toBe(1);
  });
});

describe('sums', () => {
  it('cover the lengths that output tokens see', () => {
    expect(outputLengths(2048, 3)).toEqual([2049, 2050, 2051]);
  });

  it('interpolate linearly between known lengths, like a loop over all lengths', () => {
    const points = [
      { length: 100, value: 50 },
      { length: 10, value: 7 },
      { length: 64, value: 20 },
    ];
    const at = (length: number): number => {
      if (length <= 10) return 7;
      return length <= 64 ? 7 + (13 * (length - 10)) / 54 : 20 + (30 * (length - 64)) / 36;
    };
    for (const [from, to] of [
      [0, 5],
      [0, 10],
      [3, 64],
      [9, 100],
      [63, 65],
      [99, 100],
      [20, 20],
    ] as const) {
      let sum = 0;
      for (let length = from + 1; length <= to; ++length) sum += at(length);
      expect(sumOver(points, from, to)).toBeCloseTo(sum, 9);
    }
  });

  it('end at the last measured length', () => {
    expect(sumOver([{ length: 10, value: 1 }], 5, 11)).toBeNull();
    expect(sumOver([], 0, 1)).toBeNull();
  });

  const step = (heads: string, what: string, value: number, length?: number): Figure =>
    figure({
      name: `${heads} ${what} ${length}`,
      value,
      unit: 'ms',
      better: 'less',
      limit: value / 2,
      limitName: '',
      target: null,
      samples: {},
      group: 'ceet step',
      at: { heads, what, ...(length === undefined ? {} : { length }) },
      bytes: 10 * value,
    });

  it("compute CEET's parts, totals and savings for each measured place in the grid", () => {
    const steps = [
      step('32/4/16', 'augmented Q', 3),
      step('32/4/16', 'cache', 1),
      step('32/16/16', 'cache', 2),
      ...[1024, 4096].flatMap((length) => [
        step('32/4/16', 'attention', length, length),
        step('32/16/16', 'attention', 2 * length, length),
      ]),
    ];
    const figures = ceetGrid(steps, { outputs: [1, 8], prefixes: [2] }, 26);
    // 8k after 2k is past the last position, so it is omitted.
    expect(new Set(figures.map(({ at }) => at?.output))).toEqual(new Set([1024]));
    const value = (what: string, heads?: string): Figure =>
      figures.find(({ at }) => at?.what === what && at.heads === heads) as Figure;
    const attention = outputLengths(2048, 1024).reduce((sum, length) => sum + length, 0);
    const seconds = (ms: number) => (ms * 26) / 1000;
    expect(value('attention', '32/4/16').value).toBeCloseTo(seconds(attention), 6);
    expect(value('attention', '32/16/16').value).toBeCloseTo(seconds(2 * attention), 6);
    expect(value('total', '32/4/16').value).toBeCloseTo(seconds(attention + 4 * 1024), 6);
    expect(value('total', '32/4/16').limit).toBeCloseTo(seconds(attention + 4 * 1024) / 2, 6);
    expect(value('total', '32/4/16').bytes).toBeCloseTo(10 * 26 * (attention + 4 * 1024), 3);
    expect(value('total', '32/16/16').value).toBeCloseTo(seconds(2 * attention + 2 * 1024), 6);
    expect(value('augmented Q', '32/16/16')).toBeUndefined();
    expect(value('saving, attention').value).toBeCloseTo(50, 9);
    expect(value('saving, total').value).toBeCloseTo((1 - (attention + 4096) / (2 * attention + 2048)) * 100, 9);
  });
});

describe('limits', () => {
  const limits: Limits = {
    readGbPerS: stats(10),
    copyGbPerS: stats(5),
    matrixGflopPerS: stats(100),
    how: '',
  };
  const call = async () => {};

  it('are the time of the bytes or of the FLOPs, whichever is longer', () => {
    expect(limitOf({ call, bytes: 1e7 }, limits)).toEqual({ ms: 1, name: 'bytes at the read bandwidth' });
    expect(limitOf({ call, bytes: 1e7, under: 'copy' }, limits)).toEqual({
      ms: 2,
      name: 'bytes at the copy bandwidth',
    });
    expect(limitOf({ call, bytes: 1e7, flops: 3e8 }, limits)).toEqual({ ms: 3, name: 'FLOPs at the matrix rate' });
    expect(limitOf({ call, bytes: 1e7 }, { ...limits, readGbPerS: null })).toBeNull();
    expect(limitOf({ call, bytes: 1, flops: 1 }, { ...limits, matrixGflopPerS: null })).toBeNull();
  });

  it('have no share if they are 0 or below', () => {
    const base = { name: '', value: 1, unit: '%', limitName: '', better: 'more', target: null, samples: {} } as const;
    expect(figure({ ...base, limit: -3 }).share).toBeNull();
    expect(figure({ ...base, limit: 0 }).share).toBeNull();
    expect(figure({ ...base, limit: 4 }).share).toBe(0.25);
  });

  it('rotate past the last-level cache that the system reports', () => {
    const caches = join(folder, 'cache');
    for (const [index, size] of [
      ['index0', '48K'],
      ['index3', '480M'],
    ] as const) {
      mkdirSync(join(caches, index), { recursive: true });
      writeFileSync(join(caches, index, 'size'), `${size}\n`);
    }
    expect(lastLevelCache(caches)).toBe(480 * 2 ** 20);
    expect(lastLevelCache(join(folder, 'nothing here'))).toBe(64 * 2 ** 20);
  });
});

describe('timing', () => {
  it('computes medians', () => {
    expect(summarize([3, 1, 2])).toEqual({ median: 2, min: 1, max: 3, count: 3 });
    expect(summarize([4, 1, 2, 3]).median).toBe(2.5);
  });

  it('alternates the candidates until the time is up, and lets the caller stop', async () => {
    const order: string[] = [];
    const sample = (name: string) => async () => {
      order.push(name);
      return 1;
    };
    const result = await interleaveFor({ a: sample('a'), b: sample('b') }, { seconds: 0, minRounds: 3, maxRounds: 9 });
    expect(order.join('')).toBe('abababab'); // one round warms up
    expect(result.a.count).toBe(3);
    let rounds = 0;
    const stopping = interleaveFor(
      { a: async () => ++rounds },
      {
        seconds: 100,
        minRounds: 1,
        maxRounds: 50,
        check() {
          if (rounds >= 4) throw new Error('stopped');
        },
      },
    );
    await expect(stopping).rejects.toThrow('stopped');
    expect(rounds).toBe(4);
  });

  it('estimates the time left', () => {
    expect([5, 200, 3900].map(formatDuration)).toEqual(['5 s', '3 min 20 s', '1 h 5 min']);
    expect(timeLeft(0, 0, 30)).toBe(30);
    expect(timeLeft(98, 198, 10)).toBe(20); // it took twice as long as estimated
    let text = '';
    const progress = new Progress(
      [
        { name: 'one', seconds: 10 },
        { name: 'two', seconds: 20 },
      ],
      { write: (part: string) => (text += part) },
    );
    progress.start(0);
    progress.done(0, 10);
    progress.start(1);
    expect(text).toBe('[1/2] one, 30 s left\n[2/2] two, 20 s left\n');
  });

  it('formats lengths and shapes', () => {
    expect([lengthName(32768), lengthName(100)]).toEqual(['32k', '100']);
    expect(shapeName(SIGMA_HEADS)).toBe('32/4/16 x 64');
    expect(shapeName({ ...SIGMA_HEADS, headDimVo: 128 })).toBe('32/4/16 x 64/128');
  });
});

describe('runs', () => {
  const made = (name: string, value: number): Figure =>
    figure({ name, value, unit: 's', better: 'less', limit: null, limitName: '', target: null, samples: {} });

  /** Three cells that count their measurements. After the second the user asks to stop. */
  function suiteOf(counts: Record<string, number>, stop?: AbortController): Suite {
    const cell = (name: string, bytes = 0): Cell => ({
      name,
      seconds: 1,
      bytes,
      async run() {
        counts[name] = (counts[name] ?? 0) + 1;
        if (name === 'b') stop?.abort();
        return { figures: [made(name, counts[name])], note: `about ${name}` };
      },
    });
    return {
      description: '',
      kinds: ['cpu'],
      plan: () => ({
        setup: { fixed: 1 },
        cells: [cell('a'), cell('b'), cell('huge', 1e18), cell('c')],
        derive: (measured) => [
          made(
            'sum',
            measured.reduce((sum, { value }) => sum + value, 0),
          ),
        ],
      }),
    };
  }

  const run = (suite: Suite, file: string, resume: boolean, signal = new AbortController().signal): Promise<Result> =>
    runSuites({
      name: 'test',
      suites: { test: suite },
      device: cpu,
      quick: true,
      resume,
      file,
      argv: ['test'],
      signal,
      ceilings: false,
    });

  it('save their results if stopped, and resume from there', async () => {
    const file = join(folder, 'stopped.json');
    const counts: Record<string, number> = {};
    const stop = new AbortController();
    const first = await run(suiteOf(counts, stop), file, false, stop.signal);
    expect(first.complete).toBe(false);
    const read = (): Result => JSON.parse(readFileSync(file, 'utf8'));
    expect(read().complete).toBe(false);
    expect(read().figures.map(({ name }) => name)).toEqual(['a', 'b', 'sum']);

    const second = await run(suiteOf(counts), file, true);
    expect(counts).toEqual({ a: 1, b: 1, c: 1 });
    expect(second.complete).toBe(true);
    expect(read()).toEqual(JSON.parse(JSON.stringify(second)));
    expect(second.figures.map(({ name, value }) => [name, value])).toEqual([
      ['a', 1],
      ['b', 1],
      ['c', 1],
      ['sum', 3],
    ]);
    expect(second.cells.map(({ name, note }) => [name, note])).toEqual([
      ['a', 'about a'],
      ['b', 'about b'],
      ['huge', undefined],
      ['c', 'about c'],
    ]);
    expect(second.cells[2]?.skipped).toMatch(/needs 1000000000\.0 GB of memory, and \d+\.\d GB are available/);
    expect(second.setup).toEqual({ fixed: 1 });
    expect(second.ceilings.resumedFrom).toBeDefined();

    const whole = readFileSync(file, 'utf8');
    const atOnce = new AbortController();
    atOnce.abort();
    await run(suiteOf(counts), file, false, atOnce.signal);
    // Stopped before the first measurement: the old result stays.
    expect(readFileSync(file, 'utf8')).toBe(whole);

    await run(suiteOf(counts), file, false);
    expect(counts.a).toBe(2); // without --resume everything is measured again
  });

  it('measure the limits of the CPU with the native module', async () => {
    const { ceilings } = await runSuites({
      name: 'test',
      suites: { test: suiteOf({}) },
      device: cpu,
      quick: true,
      resume: false,
      file: join(folder, 'limits.json'),
      argv: ['test'],
      signal: new AbortController().signal,
    });
    for (const rate of [ceilings.readGbPerS, ceilings.copyGbPerS, ceilings.matrixGflopPerS]) {
      expect(rate?.median).toBeGreaterThan(0);
      expect(rate?.median).toBeLessThan(1e6);
    }
  });

  it('are not resumed from results that do not match', () => {
    const fresh = newResult('ket', [], false, cpu);
    expect(() => resumeFrom(fresh, { ...fresh, suite: 'ceet' })).toThrow(/has suite ceet, and this run ket/);
    expect(() => resumeFrom(fresh, { ...fresh, quick: true })).toThrow(/quick/);
    expect(() => resumeFrom(fresh, { ...fresh, commit: 'other' })).toThrow(/commit other/);
    expect(() => resumeFrom(fresh, { ...fresh, model: 'other' })).toThrow(/model other/);
    const changed = { ...fresh.versions, changes: 'others' };
    expect(() => resumeFrom(fresh, { ...fresh, versions: changed })).toThrow(/changes others/);
    expect(resumeFrom(fresh, fresh).figures).toEqual([]);
  });

  const main = join(projectRoot, 'dist', 'bench', 'main.js');

  it('print the usage and return status 1 on wrong arguments', async () => {
    for (const args of [
      [],
      ['nothing'],
      ['ket', 'ceet'],
      ['ket', '--frobnicate'],
      ['ket', '--device', 'tpu'],
      ['cuda', '--device', 'cpu'],
    ]) {
      const { status, stderr } = await runNode([main, ...args]);
      expect([args, status]).toEqual([args, 1]);
      expect(stderr).toMatch(/^bench: .*\n\nUsage: bench SUITE/);
    }
    const help = await runNode([main, '--help']);
    expect(help.status).toBe(0);
    for (const name of [
      'attention',
      'ket',
      'ceet',
      'model',
      'kernels',
      'selective-v',
      'kv-types',
      'mla',
      'weight-types',
      'cpu',
      'compare',
      'step',
    ])
      expect(help.stdout).toMatch(new RegExp(`^ {2}${name}\\b`, 'm'));
  });

  const onEmulation = emulated === undefined ? it.skip : it;
  onEmulation('measure every suite on the emulated device (SKIPPED without it)', async () => {
    const file = join(folder, 'all.json');
    const { status, stderr } = await runNode([main, '--quick', '--device', 'emulated', '--json', file]);
    expect([status, stderr]).toEqual([0, expect.stringContaining('written to')]);
    const result: Result = JSON.parse(readFileSync(file, 'utf8'));
    expect(result.complete).toBe(true);
    expect(result.cells.filter(({ skipped }) => skipped !== undefined)).toEqual([]);
    const suites = new Set(result.cells.map(({ name }) => name.split(':')[0]));
    expect([...suites]).toEqual([
      'ket',
      'ceet',
      'selective-v',
      'kv-types',
      'attention',
      'kernels',
      'model',
      'mla',
      'cuda',
    ]);
    for (const { name, value, samples, bytes, flops, unit } of result.figures) {
      expect([name, Number.isFinite(value)]).toEqual([name, true]);
      if (unit === 'ms' || unit === 'us')
        expect([name, value > 0, (bytes ?? flops ?? 0) > 0]).toEqual([name, true, true]);
      for (const { count } of Object.values(samples)) expect(count).toBeGreaterThan(0);
    }
  });
});
