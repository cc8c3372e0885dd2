// `bench step`: the list of a step's kernels, the model of its time, and its text.

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { cacheBytes, layerWeights } from '../../bench/arithmetic';
import type { Result } from '../../bench/result';
import { headShape, SIGMA_HEADS } from '../../bench/shapes';
import { explainGap, formatArithmetic, parseDesign } from '../../bench/step';
import {
  ATTENTION_CASES,
  modelAttention,
  modelStep,
  STEP_CASES,
  STEP_MODELS,
  type StepCase,
  sizesOf,
} from '../../bench/step_cases';
import {
  BUILT,
  layerKernels,
  type StepDesign,
  type StepKernel,
  type StepModel,
  stepKernels,
  total,
} from '../../bench/step_kernels';
import { ATTENTION, attentionTime, H200, LAUNCH_US, stepTime } from '../../bench/step_model';
import { listDevices, type ModelConfig } from '../../lib/index';
import { runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const SIGMA: StepModel = {
  numLayers: 2,
  hiddenSize: 100,
  intermediateSize: 300,
  augQSize: 200,
  vocabSize: 1000,
  ...headShape([8, 2, 4], 10),
};
const LLAMA: StepModel = { ...SIGMA, augQSize: 0, ...headShape([8, 2, 2], 10) };

const plain: StepDesign = {
  normTokens: 0,
  keysAndValues: 'own',
  gemvTokens: 8,
  launches: 'host',
  copies: 'cp.async',
  sampling: 'row',
  host: 'waits',
};
const folded: StepDesign = { ...plain, normTokens: 8, keysAndValues: 'joined' };
const best: StepDesign = { ...folded, launches: 'dependent', copies: 'bulk', sampling: 'blocks', host: 'follows' };

const names = (kernels: readonly StepKernel[]): string[] => kernels.map(({ name }) => name);
const find = (kernels: readonly StepKernel[], name: string): StepKernel =>
  kernels.find((kernel) => kernel.name === name) as StepKernel;

describe('the kernels of a step', () => {
  it.each([
    ['sigma', SIGMA, plain, 10],
    ['sigma', SIGMA, { ...plain, keysAndValues: 'joined' }, 9],
    ['sigma', SIGMA, { ...plain, normTokens: 8 }, 8],
    ['sigma', SIGMA, folded, 7],
    ['llama', LLAMA, plain, 8],
    ['llama', LLAMA, folded, 6],
  ] as const)('of a layer of %s are as many as its design has (%#)', (_, model, design, launches) => {
    expect(total(layerKernels(model, [5], design), 'launches')).toBe(launches);
  });

  it('have their order, and the norm of a kernel before the product', () => {
    expect(names(layerKernels(LLAMA, [5], plain))).toEqual([
      ...['norm', 'Q, K and V', 'RoPE and append', 'attention', 'O', 'norm', 'gate and up', 'down'],
    ]);
    expect(names(stepKernels(SIGMA, [5], folded))).toEqual([
      ...['embedding', 'K, V, gate and up of Q', 'down of Q', 'RoPE and append', 'attention', 'O', 'gate and up'],
      ...['down', 'LM head', 'sampling'],
    ]);
  });

  it('have the bytes and FLOPs of their operands', () => {
    const kernels = layerKernels(SIGMA, [5, 7], plain);
    expect(find(kernels, 'K and V')).toEqual({
      name: 'K and V',
      kernel: 'gemv',
      launches: 1,
      weights: 2 * 100 * (20 + 40),
      cache: 0,
      activations: 2 * 2 * (100 + 60),
      flops: 2 * 2 * 100 * 60,
    });
    expect(find(kernels, 'gate and up of Q')).toMatchObject({
      kernel: 'gemv_gated',
      weights: 2 * 100 * 400,
      activations: 2 * 2 * (100 + 200),
    });
    expect(find(kernels, 'attention')).toMatchObject({ cache: 12 * (20 + 40) * 2, activations: 2 * 2 * (80 + 80) });
    // O adds to the residual stream, which is f32: one read, one write.
    expect(find(kernels, 'O').activations).toBe(2 * (2 * 80 + 8 * 100));
    expect(find(kernels, 'norm')).toMatchObject({ weights: 400, activations: 2 * 100 * (4 + 2) });
    expect(find(kernels, 'RoPE and append').activations).toBe(2 * 2 * (2 * 80 + 2 * 60));
    const joined = find(layerKernels(SIGMA, [5], folded), 'K, V, gate and up of Q');
    expect(joined).toMatchObject({ weights: 2 * 100 * 460 + 400, activations: 4 * 100 + 2 * (60 + 200) });
  });

  it('have the weights of the model once for each layer', () => {
    const { keyValue, rest } = layerWeights({ ...SIGMA, headDimK: SIGMA.headDimQk } as ModelConfig);
    const norms = 2 * 4 * 100;
    for (const design of [plain, folded])
      expect(total(layerKernels(SIGMA, [5], design), 'weights')).toBe(2 * (keyValue + rest) + norms);
    const whole = stepKernels(SIGMA, [5], plain);
    expect(total(whole, 'weights')).toBe(2 * (2 * (keyValue + rest) + norms) + 2 * 1000 * 100 + 400);
    expect(find(whole, 'down').launches).toBe(2);
    expect(find(whole, 'LM head').activations).toBe(2 * 100 + 4 * 1000);
  });

  it('are a launch for each output if gemm multiplies many tokens, after one norm', () => {
    const many = new Array<number>(9).fill(5);
    const kernels = layerKernels(SIGMA, many, folded);
    expect(names(kernels).slice(0, 3)).toEqual(['norm', 'K, V, gate and up of Q', 'down of Q']);
    expect(kernels[1]).toMatchObject({ kernel: 'gemm_gated', launches: 3 });
    expect(total(layerKernels(LLAMA, many, folded), 'launches')).toBe(10);
    expect(find(stepKernels(SIGMA, many, folded), 'sampling').launches).toBe(9);
    expect(find(stepKernels(SIGMA, many, { ...folded, sampling: 'rows' }), 'sampling').launches).toBe(1);
  });
});

describe('the model of the time', () => {
  it('is the floor and the sum of its losses', () => {
    const { floorMs, ms, share, launches, losses } = stepTime(SIGMA, [1000], plain);
    const kernels = stepKernels(SIGMA, [1000], plain);
    const bytes = total(kernels, 'weights') + total(kernels, 'cache');
    expect(floorMs).toBeCloseTo(bytes / 4.8e9, 12);
    expect(launches).toBe(2 * 10 + 4);
    expect(losses.launches).toBeCloseTo((launches * 3.4) / 1000, 12);
    expect(losses.memory).toBeCloseTo(bytes / 4.3e9 - bytes / 4.8e9, 12);
    expect(losses['attention rate']).toBeCloseTo(total(kernels, 'cache') / 3.7e9 - total(kernels, 'cache') / 4.3e9, 12);
    expect(losses['attention fixed']).toBeCloseTo(2 * 0.0055, 12);
    expect(losses.activations).toBeCloseTo(total(kernels, 'activations') / 4.3e9, 12);
    expect(losses.sampling).toBe(0.045);
    expect(losses.host).toBe(0.1);
    expect(losses.FLOPs).toBe(0);
    expect(ms).toBeCloseTo(floorMs + Object.values(losses).reduce((a, b) => a + b), 12);
    expect(share).toBeCloseTo(floorMs / ms, 12);
  });

  it('adds what FLOPs take longer than bytes', () => {
    const many = new Array<number>(2048).fill(1);
    const design = { ...plain, gemvTokens: 4096 };
    const wide = { ...SIGMA, hiddenSize: 16384, intermediateSize: 16384 };
    const { flops, weights, activations } = find(layerKernels(wide, many, design), 'gate and up');
    const longer = flops / 614e9 - (weights + activations) / 4.3e9;
    expect(longer).toBeGreaterThan(1);
    expect(stepTime(wide, many, design).losses.FLOPs).toBeGreaterThan(2 * longer);
    expect(stepTime(wide, [1], design).losses.FLOPs).toBe(0);
    // gemm multiplies 64 tokens at least, at 450 TFLOP/s.
    const nine = many.slice(0, 9);
    const product = find(layerKernels(wide, nine, plain), 'gate and up');
    const tile = (product.flops * 64) / 9 / 450e9;
    expect(tile).toBeLessThan(product.weights / 4.3e9);
    expect(stepTime(wide, nine, plain).losses.FLOPs).toBe(0);
    expect(stepTime(wide, many, plain).losses.FLOPs).toBeGreaterThan(stepTime(wide, many, design).losses.FLOPs);
  });

  it('repeats the estimates that its constants are derived from', () => {
    // At 12 launches for each layer, short context: 388 and 316 launches.
    const estimate = (name: string): { launches: number; ms: number; floorMs: number } => {
      const model = sizesOf((STEP_MODELS[name] as (typeof STEP_MODELS)[string]).config);
      const { launches, ms, floorMs } = stepTime(model, [128], plain);
      const more = 2 * model.numLayers;
      return { launches: launches + more, ms: ms + (more * LAUNCH_US.host) / 1000, floorMs };
    };
    const large = estimate('sigma-10b');
    expect(large.launches).toBe(388);
    expect(large.floorMs).toBeCloseTo(3.9, 1);
    expect(Math.abs(large.ms / 6.1 - 1)).toBeLessThan(0.03);
    const small = estimate('sigma-1.5b');
    expect(small.launches).toBe(316);
    expect(small.floorMs).toBeCloseTo(0.8, 2);
    expect(Math.abs(small.ms / 2.2 - 1)).toBeLessThan(0.03);
    const alone = ATTENTION_CASES.map((one) => modelAttention(one, plain));
    expect(alone.map(({ floorMs }) => Math.round(floorMs * 1e4) / 10)).toEqual([17.5, 35, 69.9]);
    for (const [i, us] of [28, 51, 97].entries())
      expect(Math.abs(((alone[i]?.ms as number) * 1000) / us - 1)).toBeLessThan(0.01);
  });

  it('models attention alone by its bytes and fixed time, without launches', () => {
    const bytes = 1000 * cacheBytes(SIGMA_HEADS);
    const { ms, losses } = attentionTime(SIGMA_HEADS, 1000, best);
    expect(ms).toBeCloseTo(bytes / 4.3e9 + ATTENTION.bulk.fixedUs / 1000, 12);
    expect(losses['attention rate']).toBe(0);
    expect(losses.launches).toBe(0);
  });

  it('is never slower with a better part', () => {
    const ladder: StepDesign[] = [plain];
    const better: Partial<StepDesign>[] = [
      { keysAndValues: 'joined' },
      { normTokens: 8 },
      { gemvTokens: 16 },
      { launches: 'graph' },
      { host: 'follows' },
      { launches: 'dependent' },
      { copies: 'bulk' },
      { sampling: 'rows' },
      { sampling: 'blocks' },
    ];
    for (const part of better) ladder.push({ ...(ladder.at(-1) as StepDesign), ...part });
    for (const step of STEP_CASES) {
      const times = ladder.map((design) => modelStep(step, design).ms);
      expect(times).toEqual([...times].sort((a, b) => b - a));
      expect(times.at(-1)).toBeGreaterThan(modelStep(step, plain).floorMs * (4800 / 4300));
    }
  });
});

describe('the cases', () => {
  it('have the goals', () => {
    const goals = (name: string) => STEP_CASES.filter(({ model }) => model === name).map(({ goal }) => goal);
    expect(goals('sigma-1.5b')).toEqual([0.75, 0.75, null, null]);
    expect(goals('sigma-10b')).toEqual([0.85, 0.85, null, null]);
    expect(goals('llama-8b')).toEqual([null, null, null, null]);
    expect(ATTENTION_CASES.map(({ name, goal }) => [name, goal])).toEqual([
      ['attention 32/4/16 x 64, 32k', 0.8],
      ['attention 32/4/16 x 128, 32k', 0.85],
      ['attention 32/4/16 x 64, 128k', 0.88],
    ]);
    expect(STEP_CASES.map(({ batchSize, kvLen }) => `${batchSize} ${kvLen}`).slice(0, 4)).toEqual([
      ...['1 4096', '1 32768', '16 4096', '16 32768'],
    ]);
  });

  it('have the sizes of their configs', () => {
    expect(STEP_CASES.length).toBe(12);
    const llama = sizesOf((STEP_MODELS['llama-8b'] as (typeof STEP_MODELS)[string]).config);
    expect(llama).toEqual({
      numLayers: 32,
      hiddenSize: 4096,
      intermediateSize: 14336,
      augQSize: 0,
      vocabSize: 128256,
      ...headShape([32, 8, 8], 128),
    });
  });
});

describe('the text', () => {
  const text = formatArithmetic(BUILT);

  it('says that nothing is measured, and has each case with its goal', () => {
    expect(text).toMatch(/^By arithmetic, not measured: an H200/);
    for (const { name, goal } of STEP_CASES) {
      const line = text.split('\n').find((one) => one.startsWith(name)) as string;
      expect(line.match(/ ms /g)).toHaveLength(4);
      expect(line.endsWith(goal === null ? '%' : `${(goal * 100).toFixed(1)} %`)).toBe(true);
    }
    for (const { name } of ATTENTION_CASES) expect(text).toContain(`\n${name}`);
    expect(text).not.toMatch(/NaN|undefined|Infinity/);
  });

  it('names the reasons, the greatest first', () => {
    const step = STEP_CASES[0] as StepCase;
    const time = modelStep(step, plain);
    const [head, ...rest] = explainGap(step.name, 0.75, time, plain).split('\n');
    expect(head).toBe(
      'sigma-1.5b, batch 1, 4k: 2.15 ms, 39.7 %, falls short of its goal of 75.0 %, which allows 1.14 ms: 1.01 ms less. ' +
        'Above the floor of 0.854 ms:',
    );
    expect(rest[0]).toBe('  0.898 ms  launches: 264 at 3.4 us');
    expect(rest.pop()).toBe('  All else equal, even launches of 0 us would not reach the goal.');
    const values = rest.map((line) => Number.parseFloat(line));
    expect(values).toEqual([...values].sort((a, b) => b - a));
    expect(values.reduce((a, b) => a + b)).toBeCloseTo(time.ms - time.floorMs, 1);
    expect(explainGap(step.name, 0.75, modelStep(step, best), best)).toMatch(
      /goal needs launches of at most 0\.\d+ us\.$/,
    );
    const attention = ATTENTION_CASES[0] as (typeof ATTENTION_CASES)[number];
    expect(explainGap(attention.name, 0.8, modelAttention(attention, best), best)).toMatch(
      /the goal needs a fixed time of at most 2\.34 us\.$/,
    );
    expect(explainGap('x', 0.1, time, plain)).toContain('reaches its goal of 10.0 %');
  });

  it('is that of another design with --with', () => {
    expect(parseDesign('')).toEqual(BUILT);
    expect(parseDesign('launches=graph,gemvTokens=16')).toEqual({ ...BUILT, launches: 'graph', gemvTokens: 16 });
    expect(() => parseDesign('launches=never')).toThrow("launches is 'never'; it must be host or graph or dependent");
    expect(() => parseDesign('speed=1')).toThrow("there is no 'speed', only normTokens, keysAndValues,");
    expect(formatArithmetic(best)).toContain('[dependent]');
    expect(formatArithmetic(best)).toContain("attention's fixed time: 3 us each");
  });
});

describe('the command', () => {
  const folder = mkdtempSync(join(tmpdir(), 'diffqkv-step-'));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  const main = join(projectRoot, 'dist', 'bench', 'main.js');
  const emulated = listDevices().some(({ id, usable }) => (id as string) === 'emulated' && usable);

  it('computes without a GPU, and writes JSON', async () => {
    const file = join(folder, 'arithmetic.json');
    const { status, stdout } = await runNode([main, 'step', '--arithmetic', '--json', file]);
    expect([status, stdout]).toEqual([0, expect.stringContaining('By arithmetic, not measured')]);
    const result = JSON.parse(readFileSync(file, 'utf8'));
    expect(result).toMatchObject({ suite: 'step', source: 'by arithmetic', design: BUILT, constants: { card: H200 } });
    expect(result.figures).toBeUndefined(); // `report` and `compare` read measurements only
    expect(result.steps).toHaveLength(12);
    expect(result.steps[0].kernels.map(({ name }: StepKernel) => name)).toContain('attention');
    expect(result.steps[0].times.host.ms).toBeCloseTo(
      modelStep(STEP_CASES[0] as StepCase, { ...BUILT, launches: 'host' }).ms,
    );
    expect((await runNode([main, 'step', '--arithmetic', '--check'])).status).toBe(1);
  });

  it('rejects wrong arguments', async () => {
    for (const args of [['--with', 'a=b'], ['--device', 'cpu'], ['--device', 'tpu'], ['--nonsense']]) {
      const { status, stderr } = await runNode([main, 'step', ...args]);
      expect([args, status, stderr]).toEqual([args, 1, expect.stringMatching(/^bench step: .*\n\nUsage: bench step/)]);
    }
  });

  (emulated ? it : it.skip)('measures on the emulated device, as a trial (SKIPPED without it)', async () => {
    const file = join(folder, 'measured.json');
    const { status, stdout, stderr } = await runNode([main, 'step', '--device', 'emulated', '--quick', '--json', file]);
    expect([status, stderr]).toEqual([0, expect.stringContaining('written to')]);
    expect(stdout).not.toContain('arithmetic');
    const { figures, cells, complete }: Result = JSON.parse(readFileSync(file, 'utf8'));
    expect(complete).toBe(true);
    expect(cells.filter(({ skipped }) => skipped !== undefined)).toEqual([]);
    expect(figures.map(({ name }) => name)).toEqual([
      ...ATTENTION_CASES.map(({ name }) => name),
      ...['sigma-1.5b, batch 1, 4k', 'sigma-10b, batch 1, 4k', 'llama-8b, batch 1, 4k'],
    ]);
    for (const { name, value, limit } of figures) expect([name, value > 0, limit]).toEqual([name, true, null]);
  });
});
