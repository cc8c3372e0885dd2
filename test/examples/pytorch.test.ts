// examples/pytorch/modeling_diffqkv.py against the product: the same logits for what `diffqkv
// convert` writes, and the product loads what the example saves and trains. Needs a Python with
// torch and transformers 5, by default python3, or the one that DIFFQKV_PYTHON names.

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model } from '../../lib/index';
import { type CheckpointSpec, randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { builtCli, runNode } from '../support/children';
import { logitError, modelTolerances } from '../support/compare';
import { tldrDirectory } from '../support/fixtures';
import { Random } from '../support/numbers';

const python = process.env.DIFFQKV_PYTHON ?? 'python3';
const probe = spawnSync(python, ['-c', 'import torch, transformers; print(transformers.__version__)']);
const hasPython = probe.status === 0 && Number.parseInt(`${probe.stdout}`, 10) >= 5;
if (!hasPython) it.skip(`SKIPPED: '${python}' has no torch with transformers 5 (DIFFQKV_PYTHON)`, () => {});

interface Job {
  directory: string;
  tokens: number[];
  output?: string;
  train?: boolean;
  generate?: number;
}

interface Answer {
  missing: string[];
  unexpected: string[];
  logits: number[];
  cached: number[];
  generated?: number[];
  loss?: number;
  lossAfter?: number;
  trained?: number[];
  unchanged?: string[];
}

function runPython(jobs: Job[]): Answer[] {
  const { status, stdout, stderr } = spawnSync(python, [join(__dirname, 'run_modeling.py')], {
    input: JSON.stringify(jobs),
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: { ...process.env, HF_HUB_OFFLINE: '1' },
  });
  if (status !== 0) throw new Error(stderr);
  return stdout
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

/** The product's logits after each token, with float32 weights. */
async function logitsOf(directory: string, tokens: number[]): Promise<Float32Array[]> {
  const model = await Model.load(directory, { device: 'cpu', dtype: 'f32' });
  try {
    const session = await model.createSession();
    const all: Float32Array[] = [];
    for (const token of tokens) all.push(await session.decode(token));
    return all;
  } finally {
    model.dispose();
  }
}

jest.setTimeout(600_000); // PyTorch takes seconds to start

/** The product's logits after the last token of a prompt, with float32 weights. */
async function prefillLogits(directory: string, tokens: number[]): Promise<Float32Array> {
  const model = await Model.load(directory, { device: 'cpu', dtype: 'f32' });
  try {
    return await (await model.createSession()).prefill(tokens);
  } finally {
    model.dispose();
  }
}

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const tldrTokens = [4094, ...new Random(11).tokens(30, 4000)];

(hasPython ? describe : describe.skip)('modeling_diffqkv.py', () => {
  const expectSame = async (actual: number[], directory: string, tokens: number[]) => {
    const expected = (await logitsOf(directory, tokens)).at(-1) as Float32Array;
    expect(logitError(Float32Array.from(actual), expected)).toBeLessThan(modelTolerances.f32);
  };
  const check = async (answer: Answer, { directory, tokens }: Job) => {
    expect([answer.missing, answer.unexpected]).toEqual([[], []]);
    await expectSame(answer.logits, directory, tokens);
    await expectSame(answer.cached, directory, tokens);
  };

  it('computes the logits of what convert writes, trains it, and saves what the product loads', async () => {
    const parent = directories.make();
    const conversions = [
      [],
      ['--key-heads', '1'],
      ['--value-heads', '2'],
      ['--key-heads', '1', '--value-heads', '1'],
      ['--key-head-dim', 'half'],
      ['--key-head-dim', '16'],
      ['--key-head-dim', '8', '--key-heads', '1', '--value-heads', '2'],
    ];
    const jobs: Job[] = [];
    for (const [i, args] of conversions.entries()) {
      const directory = args.length > 0 ? join(parent, `in-${i}`) : tldrDirectory;
      if (args.length > 0) {
        const { status, stderr } = await runNode([builtCli, 'convert', tldrDirectory, directory, ...args]);
        expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
      }
      jobs.push({ directory, tokens: tldrTokens, output: join(parent, `trained-${i}`), train: true });
    }
    const answers = runPython(jobs);
    for (const [i, job] of jobs.entries()) {
      const answer = answers[i] as Answer;
      await check(answer, job);
      const before = await logitsOf(job.directory, job.tokens);
      const losses = before.slice(0, -1).map((logits, at) => {
        const max = Math.max(...logits);
        const sum = logits.reduce((total, logit) => total + Math.exp(logit - max), 0);
        return max + Math.log(sum) - (logits[job.tokens[at + 1] as number] as number);
      });
      const loss = losses.reduce((a, b) => a + b) / losses.length;
      expect(Math.abs((answer.loss as number) / loss - 1)).toBeLessThan(modelTolerances.f32);
      expect(answer.lossAfter).toBeLessThan(0.99 * loss);
      expect(answer.unchanged).toEqual([]);
      await expectSame(answer.trained as number[], job.output as string, job.tokens);
      expect(logitError(Float32Array.from(answer.trained as number[]), answer.logits)).toBeGreaterThan(0.01);
    }
  });

  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
  const longrope = {
    rope_type: 'longrope',
    factor: 2,
    short_factor: [1, 1, 1.5, 1, 1, 2, 1, 3],
    long_factor: [1, 2, 3, 4, 5, 6, 7, 8],
    original_max_position_embeddings: 2048,
  };
  const specs: [string, CheckpointSpec][] = [
    ['untied, without augmented Q', { tied: false, augQSize: 0 }],
    ['V heads of their own size', { heads: [8, 2, 4], valueHeadDim: 24 }],
    ['BF16, GELU', { type: 'BF16', config: { hidden_act: 'gelu' } }],
    ['tanh GELU', { config: { hidden_act: 'gelu_pytorch_tanh' } }],
    ['Llama 3 RoPE', { ropeScaling: llama3, keyHeadDim: 8, keyLift: { kind: 'linear', position: 'after_rope' } }],
    ['linear RoPE', { config: { rope_scaling: { type: 'linear', factor: 4 } } }],
    ['YaRN', { config: { rope_scaling: { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 512 } } }],
    ['LongRoPE', { config: { rope_scaling: longrope } }],
    [
      'LongRoPE, beyond its first context',
      { config: { rope_scaling: { ...longrope, original_max_position_embeddings: 32 } } },
    ],
    ['dynamic RoPE', { config: { rope_scaling: { rope_type: 'dynamic', factor: 4 } } }],
    [
      'dynamic RoPE, beyond its context',
      { maxPositionEmbeddings: 32, config: { rope_scaling: { rope_type: 'dynamic', factor: 4 } } },
    ],
    ['a linear lift before RoPE', { keyHeadDim: 6, keyLift: { kind: 'linear', position: 'before_rope' } }],
    [
      'a SwiGLU lift before RoPE',
      { keyHeadDim: 8, keyLift: { kind: 'swiglu', position: 'before_rope', intermediate_size: 20 } },
    ],
    [
      'a SwiGLU lift after RoPE',
      { keyHeadDim: 8, keyLift: { kind: 'swiglu', position: 'after_rope', intermediate_size: 20 } },
    ],
  ];

  it('computes the logits of the other forms of Sigma, and generates', async () => {
    const parent = directories.make();
    const jobs = specs.map(([, spec], i): Job => {
      const directory = join(parent, `${i}`);
      writeCheckpoint(directory, randomCheckpoint({ ...spec, seed: i + 1 }));
      return { directory, tokens: new Random(i).tokens(50, 128), output: join(parent, `saved-${i}`) };
    });
    const continued = { directory: tldrDirectory, tokens: tldrTokens, generate: 8 };
    const answers = runPython([...jobs, continued]);
    const failed: string[] = [];
    for (const [i, job] of jobs.entries()) {
      const { missing, unexpected, logits, cached } = answers[i] as Answer;
      expect([missing, unexpected]).toEqual([[], []]);
      for (const directory of [job.directory, job.output as string]) {
        const expected = await prefillLogits(directory, job.tokens);
        // Beyond the context, the frequencies of a prompt depend on its length.
        const isBeyond = /beyond/.test(specs[i]?.[0] as string);
        for (const actual of isBeyond ? [logits] : [logits, cached]) {
          const error = logitError(Float32Array.from(actual), expected);
          if (!(error < modelTolerances.f32)) failed.push(`${specs[i]?.[0]}: ${error}`);
        }
      }
    }
    expect(failed).toEqual([]);
    const generated = answers.at(-1)?.generated as number[];
    const logits = await logitsOf(tldrDirectory, [...tldrTokens, ...generated]);
    expect(generated).toHaveLength(8);
    expect(logits.slice(tldrTokens.length - 1, -1).map((row) => row.indexOf(Math.max(...row)))).toEqual(generated);
  });

  it('rejects biases', () => {
    const directory = directories.make();
    writeCheckpoint(directory, randomCheckpoint({ config: { attention_bias: true } }));
    expect(() => runPython([{ directory, tokens: [1, 2, 3, 4, 5] }])).toThrow(/no biases/);
  });
});

it('the example is shorter than 300 lines', () => {
  const text = readFileSync(join(__dirname, '..', '..', 'examples', 'pytorch', 'modeling_diffqkv.py'), 'utf8');
  expect(text.split('\n').length).toBeLessThan(300);
});
