// Runs every kept fuzzing input (test/fuzz) through the built module and lib/, like a user's file.
// Each loads, or fails quickly with a code and a one-line message. With clang, also fuzzes for a
// few seconds.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Model, Tokenizer } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { projectRoot } from '../support/fixtures';
import { splitFiles } from './files';

type Target = (tokenizer: typeof Tokenizer, directory: string, input: string) => Promise<void>;
const scripted = jest.requireActual<Record<string, Target>>('./tokenizer_targets.cjs');

const { unpackCorpus } = jest.requireActual<{ unpackCorpus(folder: string): void }>('./corpus.cjs');

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const corpus = directories.make();
unpackCorpus(corpus);

function inputs(target: string): [string, Buffer][] {
  return [corpus, join(__dirname, 'regressions')].flatMap((kind) => {
    const folder = join(kind, target);
    const names = existsSync(folder) ? readdirSync(folder) : [];
    return names.map((name): [string, Buffer] => [join(folder, name), readFileSync(join(folder, name))]);
  });
}

const good = randomCheckpoint({
  numLayers: 1,
  headDim: 2,
  hiddenSize: 4,
  intermediateSize: 4,
  augQSize: 2,
  vocabSize: 4,
});

/** The files of a checkpoint that an input of a target represents. */
const files: Record<string, (input: Buffer) => [string, Uint8Array][]> = {
  safetensors: (input) => [['model.safetensors', input]],
  index: (input) => [['model.safetensors.index.json', input]],
  config: (input) => {
    const end = input.indexOf(0);
    if (end < 0) return [['config.json', input]];
    return [
      ['config.json', input.subarray(0, end)],
      ['generation_config.json', input.subarray(end + 1)],
    ];
  },
  checkpoint: splitFiles,
};

async function load(directory: string): Promise<{ code?: string; message: string } | undefined> {
  try {
    const model = await Model.load(directory, { device: 'cpu' });
    model.dispose();
    return undefined;
  } catch (error) {
    return error as { code?: string; message: string };
  }
}

const place = () => {
  const directory = join(directories.make(), 'model');
  mkdirSync(directory);
  return directory;
};

/**
 * The result of loading these files: 'loads', or the error code, which must be one for broken
 * files.
 */
async function outcome(written: [string, Uint8Array][], directory = place()): Promise<string> {
  rmSync(directory, { recursive: true });
  mkdirSync(directory);
  const whole = written.some(([name]) => name === 'config.json');
  if (!whole) writeCheckpoint(directory, good);
  if (written.some(([name]) => name.endsWith('.index.json')) && !whole) rmSync(join(directory, 'model.safetensors'));
  for (const [name, bytes] of written) writeFileSync(join(directory, name), bytes);
  const error = await load(directory);
  if (error === undefined) return 'loads';
  expect(error).toMatchObject({
    name: 'DiffqkvError',
    code: expect.stringMatching(/INVALID_CHECKPOINT|UNSUPPORTED_MODEL/),
  });
  expect(error.message).toContain(directory);
  expect(error.message.length).toBeLessThan(3000);
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the message must not contain them
  expect(error.message).not.toMatch(/[\u0000-\u001f\u007f\ufffd]/);
  return error.code as string;
}

describe('kept inputs', () => {
  it.each(Object.keys(files))('%s', async (target) => {
    const directory = place();
    const outcomes = new Map<string, number>();
    const all = inputs(target);
    for (const [, input] of all) {
      const result = await outcome(files[target]?.(input) ?? [], directory);
      outcomes.set(result, (outcomes.get(result) ?? 0) + 1);
    }
    expect(all.length).toBeGreaterThan(15);
    expect([...outcomes.keys()]).toContain('ERR_INVALID_CHECKPOINT');
    if (target === 'checkpoint') expect([...outcomes.keys()]).toContain('loads');
  });

  it.each(Object.keys(scripted))('%s', async (target) => {
    const directory = place();
    // The encoder warns about unknown settings.
    const warn = jest.spyOn(console, 'warn').mockImplementation(() => {});
    const all = inputs(target);
    for (const [name, input] of all) {
      const start = performance.now();
      await scripted[target]?.(Tokenizer, directory, input.toString());
      expect([name, performance.now() - start < 30_000]).toEqual([name, true]);
    }
    warn.mockRestore();
    expect(all.length).toBeGreaterThan(15);
  });
});

describe('files that once took hours or many times their size in memory', () => {
  const objects = `[${new Array(100_000).fill('{"":0}').join(',')}]`;
  const sigma = '"architectures":["sigma"],"num_key_heads":1,"num_value_heads":1';
  const tokens = Array.from({ length: 100_000 }, (_, id) => id).join(',');
  const sizes = '"hidden_size":4,"intermediate_size":4,"num_hidden_layers":1,"vocab_size":4,"rms_norm_eps":1e-5';
  it.each<[string, string, string, RegExp]>([
    ['many objects in an array of config.json', 'config.json', `{"a":${objects}}`, /num_key_heads/],
    [
      'a config.json of more than 1 MiB',
      'config.json',
      `{"a":${objects}}${' '.repeat(1 << 20)}`,
      /the limit is 1048576/,
    ],
    [
      'eos_token_id of 100,000 tokens',
      'config.json',
      `{${sigma},${sizes},"eos_token_id":[${tokens}]}`,
      /eos_token_id.*256/,
    ],
    [
      'architectures of 100,000 names',
      'config.json',
      `{"architectures":[${new Array(100_000).fill('"sigma"').join(',')}]}`,
      /'sigma', .*\.\.\./,
    ],
    [
      'objects in an array next to weight_map',
      'model.safetensors.index.json',
      `{"metadata":${objects},"weight_map":{"x":"a.safetensors"}}`,
      /a\.safetensors.*missing/,
    ],
    ['arrays in weight_map', 'model.safetensors.index.json', `{"weight_map":${objects}}`, /weight_map.*array/],
  ])('%s', async (_, name, text, message) => {
    const directory = place();
    if (name !== 'config.json') writeCheckpoint(directory, good);
    if (name !== 'config.json') rmSync(join(directory, 'model.safetensors'));
    writeFileSync(join(directory, name), text);
    const start = performance.now();
    const error = await load(directory);
    expect(error?.message).toMatch(message);
    expect(error?.message.length).toBeLessThan(1000);
    // They once took minutes, or quadratic time.
    expect(performance.now() - start).toBeLessThan(10_000);
  });
});

describe('npm run fuzz', () => {
  const fuzz = (...args: string[]) =>
    spawnSync(process.execPath, [join(projectRoot, 'test', 'tools', 'fuzz.mjs'), ...args], {
      encoding: 'utf8',
      timeout: 900_000,
    });

  const seconds = (target: string): void => {
    const { status, stdout, stderr } = fuzz('--seconds', '2', '--target', target, '--seed', '1');
    expect([status, stderr]).toEqual([0, '']);
    expect(stdout).toMatch(new RegExp(`ok {3}${target}: [1-9]\\d* inputs`));
  };
  it.each(Object.keys(scripted))('%s', seconds);
  const probe = { input: 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' };
  const hasClang = ['clang++', ...[22, 21, 20, 19, 18, 17, 16, 15, 14].map((version) => `clang++-${version}`)].some(
    (name) => spawnSync(name, ['-fsanitize=fuzzer,address', '-x', 'c++', '-', '-o', '/dev/null'], probe).status === 0,
  );
  if (hasClang) it.each(Object.keys(files))('%s', seconds, 900_000);
  else it.skip('SKIPPED: the targets in C++: no clang++ with libFuzzer', () => {});

  it('has targets in C++ that any compiler accepts', () => {
    const sources = readdirSync(__dirname).filter((name) => name.endsWith('.cc'));
    expect(sources).toContain('harness.cc');
    const flags = ['-std=c++20', '-fsyntax-only', '-D__has_feature(x)=0', `-I${join(projectRoot, 'csrc')}`];
    for (const name of sources) {
      const { status, stderr } = spawnSync(process.env.CXX || 'c++', [...flags, join(__dirname, name)], {
        encoding: 'utf8',
      });
      expect([name, status, stderr]).toEqual([name, 0, '']);
    }
  }, 300_000);

  it('rejects unknown targets and invalid durations', () => {
    expect(fuzz('--target', 'telepathy').status).toBe(2);
    expect(fuzz('--seconds', '0').status).toBe(2);
  });
});
