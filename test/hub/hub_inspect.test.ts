// What the environment says about the hub, what the cache has, and models that are described without
// being loaded, in the calling process. hub_cli.test.ts tests the same by the command.

import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { hubSettings, idText, inspectDirectory, inspectModel, listSnapshots } from '../../lib/hub/index';
import { shardNames } from '../../lib/hub/select';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { fixturesDirectory } from '../support/fixtures';
import { config, hubOfTests, noise, weightBytes } from './hub';

const tests = hubOfTests();
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const commit = 'c'.repeat(40);
const indexOf = (...shards: unknown[]) =>
  JSON.stringify({ weight_map: Object.fromEntries(shards.map((shard, i) => [i, shard])) });

function write(directory: string, files: Record<string, string>): string {
  for (const [name, text] of Object.entries(files)) {
    mkdirSync(dirname(join(directory, name)), { recursive: true });
    writeFileSync(join(directory, name), text);
  }
  return directory;
}

describe('the settings of the hub', () => {
  const names = ['HF_HOME', 'XDG_CACHE_HOME', 'HF_TOKEN_PATH', 'HUGGINGFACE_HUB_CACHE', 'HUGGING_FACE_HUB_TOKEN'];
  let before: NodeJS.ProcessEnv;
  beforeEach(() => {
    before = { ...process.env };
    const ofHub = ['HF_ENDPOINT', 'HF_HUB_CACHE', 'HF_HUB_DOWNLOAD_TIMEOUT'];
    for (const name of [...names, ...ofHub]) delete process.env[name];
    process.env.HF_HOME = '/nowhere';
  });
  afterEach(() => {
    for (const name of [...names, 'HF_HUB_DOWNLOAD_TIMEOUT', 'HF_TOKEN']) delete process.env[name];
    Object.assign(process.env, before);
  });

  it('have defaults', async () => {
    expect(await hubSettings()).toEqual({
      endpoint: 'https://huggingface.co',
      token: undefined,
      offline: false,
      cache: '/nowhere/hub',
      timeoutMs: 10_000,
    });
    delete process.env.HF_HOME;
    process.env.XDG_CACHE_HOME = '/xdg';
    expect((await hubSettings()).cache).toBe('/xdg/huggingface/hub');
    delete process.env.XDG_CACHE_HOME;
    process.env.HF_TOKEN = 'x'; // so that no file of the user is read
    expect((await hubSettings()).cache).toBe(join(homedir(), '.cache', 'huggingface', 'hub'));
  });

  it.each<[string, string, string, unknown]>([
    ['HF_ENDPOINT', 'https://hub.example.org/path//', 'endpoint', 'https://hub.example.org/path'],
    ['HF_ENDPOINT', 'http://x/', 'endpoint', 'http://x'],
    ['HF_HUB_CACHE', '~/models', 'cache', join(homedir(), 'models')],
    ['HF_HUB_CACHE', '~', 'cache', homedir()],
    ['HF_HUB_CACHE', '~other/x', 'cache', '~other/x'],
    ['HF_HUB_CACHE', '/a/~/b', 'cache', '/a/~/b'],
    ['HUGGINGFACE_HUB_CACHE', '/old', 'cache', '/old'],
    ['HF_HOME', '~/hf', 'cache', join(homedir(), 'hf', 'hub')],
    ['HF_HUB_DOWNLOAD_TIMEOUT', '2.5', 'timeoutMs', 2500],
    ['HF_HUB_OFFLINE', '1', 'offline', true],
    ['HF_HUB_OFFLINE', 'ON', 'offline', true],
    ['HF_HUB_OFFLINE', 'Yes', 'offline', true],
    ['HF_HUB_OFFLINE', '0', 'offline', false],
    ['HF_HUB_OFFLINE', 'no', 'offline', false],
    ['HF_HUB_OFFLINE', '11', 'offline', false],
    ['HF_HUB_OFFLINE', 'x1', 'offline', false],
    ['HF_TOKEN', ' hf_a\n', 'token', 'hf_a'],
    ['HUGGING_FACE_HUB_TOKEN', 'hf_b', 'token', 'hf_b'],
  ])('%s=%j', async (name, value, field, expected) => {
    process.env[name] = value;
    expect(await hubSettings()).toHaveProperty(field, expected);
  });

  it('prefer the new names of variables', async () => {
    Object.assign(process.env, { HF_HUB_CACHE: '/new', HUGGINGFACE_HUB_CACHE: '/old' });
    Object.assign(process.env, { HF_TOKEN: 'hf_new', HUGGING_FACE_HUB_TOKEN: 'hf_old' });
    expect(await hubSettings()).toMatchObject({ cache: '/new', token: 'hf_new' });
  });

  it('read the token from a file', async () => {
    const home = write(directories.make(), { token: 'hf_home\n', other: ' hf_other ', bad: 'a b', empty: '' });
    process.env.HF_HOME = home;
    expect((await hubSettings()).token).toBe('hf_home');
    process.env.HF_TOKEN_PATH = join(home, 'other');
    expect((await hubSettings()).token).toBe('hf_other');
    process.env.HF_TOKEN_PATH = join(home, 'empty');
    expect((await hubSettings()).token).toBeUndefined();
    process.env.HF_TOKEN_PATH = join(home, 'bad');
    const error = await errorOf(() => hubSettings());
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_ARGUMENT',
      'the access token of the hub (HF_TOKEN, or the file that `hf auth login` writes) has characters that a ' +
        'token cannot have',
    ]);
  });

  it.each([
    ['HF_ENDPOINT', 'huggingface.co', 'HF_ENDPOINT must be a URL, such as https://huggingface.co'],
    ['HF_ENDPOINT', 'ftp://x', 'HF_ENDPOINT must be an http or https URL without a user name'],
    ['HF_ENDPOINT', 'xhttp://x', 'HF_ENDPOINT must be an http or https URL without a user name'],
    ['HF_ENDPOINT', 'http://u@x', 'HF_ENDPOINT must be an http or https URL without a user name'],
    ['HF_ENDPOINT', 'http://:p@x', 'HF_ENDPOINT must be an http or https URL without a user name'],
    ['HF_HUB_DOWNLOAD_TIMEOUT', '-1', 'HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds above 0'],
    ['HF_HUB_DOWNLOAD_TIMEOUT', '0.0', 'HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds above 0'],
    ['HF_HUB_DOWNLOAD_TIMEOUT', 'soon', 'HF_HUB_DOWNLOAD_TIMEOUT must be a number of seconds above 0'],
  ])('reject %s=%j', async (name, value, message) => {
    process.env[name] = value;
    const error = await errorOf(() => hubSettings());
    expect([error.code, error.message]).toEqual(['ERR_INVALID_ARGUMENT', message]);
  });
});

it('the text of an id has the revision unless it is main', () => {
  expect(idText({ name: 'a/b', revision: 'main' })).toBe('a/b');
  expect(idText({ name: 'a/b', revision: 'v1' })).toBe('a/b@v1');
});

describe('the shards of an index', () => {
  const parse = (text: string) => shardNames(Buffer.from(text));
  it('are sorted, each once', () => {
    expect(parse(indexOf('b.safetensors', 'a-1.x.safetensors', 'b.safetensors'))).toEqual([
      'a-1.x.safetensors',
      'b.safetensors',
    ]);
    const many = Array.from({ length: 10_000 }, (_, i) => `${i}.safetensors`);
    expect(parse(indexOf(...many))).toHaveLength(10_000);
  });

  it.each([
    ['{', 'it is not valid JSON'],
    ['null', 'it is not valid JSON'],
    ['{}', 'weight_map is not an object'],
    ['{"weight_map": null}', 'weight_map is not an object'],
    ['{"weight_map": {}}', 'it has 0 shards'],
    [indexOf(...Array.from({ length: 10_001 }, (_, i) => `${i}.safetensors`)), 'it has 10001 shards'],
    [indexOf(7), 'the shard 7 is not the name of a safetensors file'],
    [indexOf('../a.safetensors'), 'the shard "../a.safetensors" is not the name of a safetensors file'],
    [indexOf('a.safetensors.bin'), 'the shard "a.safetensors.bin" is not the name of a safetensors file'],
    [indexOf('.safetensors'), 'the shard ".safetensors" is not the name of a safetensors file'],
  ])('are wrong in an index: %#', (text, problem) => {
    expect(parse(text)).toBe(problem);
  });
});

describe('the cache', () => {
  it('lists its snapshots', async () => {
    expect(await listSnapshots(tests.cache)).toEqual([]);
    expect(await listSnapshots(join(write(tests.cache, { file: '' }), 'file'))).toEqual([]);
    const other = 'd'.repeat(40);
    write(tests.folder('org/b'), {
      [`snapshots/${commit}/config.json`]: config,
      [`snapshots/${commit}/model.safetensors`]: 'xyz',
      [`snapshots/${commit}/original/params.json`]: '12',
      [`snapshots/${other}/config.json`]: '',
      'refs/main': `${commit}\n`,
      'refs/refs/pr/1': commit,
      'refs/v1': other,
    });
    symlinkSync('nowhere', tests.folder('org/b', 'snapshots', other, 'model.safetensors'));
    write(tests.folder('a--x'), { [`snapshots/${commit}/README.md`]: '1' });
    write(tests.cache, { [`datasets--a--b/snapshots/${commit}/x`]: '1', 'models--file': '' });
    const directory = (name: string, hash: string) => tests.folder(name, 'snapshots', hash);
    expect(await listSnapshots(tests.cache)).toEqual([
      {
        ...{ name: 'a/x', commit, revisions: [], directory: directory('a--x', commit) },
        ...{ bytes: 1, complete: false },
      },
      {
        ...{ name: 'org/b', commit, revisions: ['main', 'refs/pr/1'], directory: directory('org/b', commit) },
        ...{ bytes: config.length + 5, complete: true },
      },
      {
        ...{ name: 'org/b', commit: other, revisions: ['v1'], directory: directory('org/b', other) },
        ...{ bytes: 0, complete: false },
      },
    ]);
  });

  it.each<[string, Record<string, string>, boolean]>([
    ['one file', { 'config.json': '', 'model.safetensors': '' }, true],
    ['no config', { 'model.safetensors': '' }, false],
    ['no weights', { 'config.json': '' }, false],
    ['an index', { 'config.json': '', 'model.safetensors.index.json': indexOf('a.safetensors') }, false],
    [
      'an index and its shard',
      { 'config.json': '', 'model.safetensors.index.json': indexOf('a.safetensors'), 'a.safetensors': '' },
      true,
    ],
    ['a broken index', { 'config.json': '', 'model.safetensors.index.json': '{', 'a.safetensors': '' }, false],
    ['a folder in place of the weights', { 'config.json': '', 'model.safetensors/x': '' }, false],
  ])('knows whether a snapshot is complete: %s', async (_name, files, complete) => {
    write(tests.folder('org/m', 'snapshots', commit), files);
    expect(await listSnapshots(tests.cache)).toMatchObject([{ complete }]);
  });
});

describe('a directory', () => {
  it('is described', async () => {
    const directory = join(fixturesDirectory, 'sigma-4-4-2-sharded-f16');
    const inspection = await inspectDirectory(directory, 'a name');
    expect(inspection).toMatchObject({ source: 'a name', directory, problem: undefined });
    expect(inspection.config).toContain('"architectures"');
    expect(inspection.parsed?.numLayers).toBeGreaterThan(0);
    expect(inspection.weights).toEqual([1, 2, 3].map((i) => `model-0000${i}-of-00003.safetensors`));
    expect(await inspectModel(directory)).toEqual({ ...inspection, source: directory });
  });

  it('has the bytes of the files that are read', async () => {
    const files = { 'config.json': config, 'model.safetensors': 'xyz', 'tokenizer.json': '{}', 'other.bin': 'x' };
    const inspection = await inspectDirectory(write(directories.make(), files), 'm');
    expect(inspection).toMatchObject({ bytes: config.length + 5, weights: ['model.safetensors'], problem: undefined });
  });

  it.each<[string, Record<string, string>, object]>([
    [
      'no config.json',
      { 'model.safetensors': 'x' },
      {
        ...{ config: undefined, parsed: undefined, weights: ['model.safetensors'], bytes: 1 },
        problem: { code: 'ERR_UNSUPPORTED_MODEL', message: 'm: the model has no config.json' },
      },
    ],
    [
      'no weights',
      { 'config.json': config },
      {
        ...{ weights: [], bytes: 0 },
        problem: {
          code: 'ERR_UNSUPPORTED_MODEL',
          message: 'm: the model has no model.safetensors or model.safetensors.index.json',
        },
      },
    ],
    [
      'a broken index',
      { 'config.json': config, 'model.safetensors.index.json': '{}' },
      {
        ...{ weights: [] },
        problem: {
          code: 'ERR_INVALID_CHECKPOINT',
          message: 'model.safetensors.index.json: weight_map is not an object',
        },
      },
    ],
    [
      'two problems, of which the first is kept',
      { 'config.json': '{', 'model.safetensors.index.json': '{}' },
      { problem: { code: 'ERR_INVALID_CHECKPOINT', message: expect.stringMatching(/^m\/config\.json: not valid/) } },
    ],
    [
      'a config.json of more than 1 MiB',
      { 'config.json': ' '.repeat(2 ** 20 + 1), 'model.safetensors': 'x' },
      {
        parsed: undefined,
        problem: { code: 'ERR_INVALID_CHECKPOINT', message: 'm/config.json: 1048577 bytes; the limit is 1048576' },
      },
    ],
    [
      'a NUL in config.json',
      { 'config.json': `${config}\0`, 'model.safetensors': 'x' },
      { problem: { code: 'ERR_INVALID_CHECKPOINT', message: expect.stringMatching(/^m\/config\.json: not valid/) } },
    ],
    [
      'a generation_config.json that is not JSON',
      { 'config.json': config, 'generation_config.json': '{', 'model.safetensors': 'x' },
      { problem: { code: 'ERR_INVALID_CHECKPOINT', message: expect.stringMatching(/^m\/generation_config\.json/) } },
    ],
  ])('with %s has a problem', async (_name, files, expected) => {
    expect(await inspectDirectory(write(directories.make(), files), 'm')).toMatchObject(expected);
  });

  it('with a config.json of 1 MiB is read', async () => {
    const files = { 'config.json': config.padEnd(2 ** 20), 'model.safetensors': 'x' };
    expect((await inspectDirectory(write(directories.make(), files), 'm')).problem).toBeUndefined();
  });

  it('that cannot be read is an error, explained if it can be', async () => {
    const error = await errorOf(() => inspectModel('/nowhere/at/all'));
    expect([error.code, error.message]).toEqual([
      'ERR_INVALID_CHECKPOINT',
      expect.stringMatching(/^\/nowhere\/at\/all: cannot be read: ENOENT/),
    ]);
    expect((await errorOf(() => inspectModel('gpt2'))).message).toMatch(/^gpt2: no such directory\. The id of a model/);
    const link = directories.make();
    mkdirSync(link, { recursive: true });
    symlinkSync('nowhere', join(link, 'config.json'));
    expect((await errorOf(() => inspectModel(link))).message).toBe(`${join(link, 'config.json')}: no such file`);
  });
});

describe('a model on the hub', () => {
  it('is described without its weights', async () => {
    const total = 123;
    const hash = tests.hub.add('org/m', noise(1), { safetensors: { total, parameters: {} } });
    expect(await inspectModel('org/m')).toMatchObject({
      ...{ source: 'org/m', commit: hash, numParameters: total, config, weights: ['model.safetensors'] },
      ...{ bytes: config.length + weightBytes + '{"seed": 1}'.length, problem: undefined },
    });
    expect(tests.hub.requests.filter(({ host }) => host === 'cdn')).toEqual([]);
  });

  it('has the shards of its index', async () => {
    const directory = directories.make();
    writeCheckpoint(directory, randomCheckpoint({ seed: 3 }), 2);
    tests.hub.addDirectory('org/shards', directory, { revision: 'v2' });
    const { source, weights, numParameters } = await inspectModel('org/shards@v2');
    expect([source, weights, numParameters]).toEqual([
      'org/shards@v2',
      ['model-1-of-2.safetensors', 'model-2-of-2.safetensors'],
      undefined,
    ]);
  });

  it('whose shard is not in the listing has a problem', async () => {
    const index = indexOf('a.safetensors');
    tests.hub.add('org/lost', { 'config.json': config, 'model.safetensors.index.json': index });
    expect((await inspectModel('org/lost')).problem).toEqual({
      code: 'ERR_INVALID_DOWNLOAD',
      message: expect.stringMatching(/^org\/lost: the answer of .* is invalid: a\.safetensors is not in the listing$/),
    });
  });

  it('cannot be described without a network', async () => {
    process.env.HF_ENDPOINT = 'http://127.0.0.1:9';
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '1';
    const error = await errorOf(() => inspectModel('org/m'));
    expect([error.code, error.message]).toEqual(['ERR_NETWORK', expect.stringMatching(/^org\/m: cannot reach/)]);
  });

  it('is that of the cache if HF_HUB_OFFLINE is set', async () => {
    process.env.HF_HUB_OFFLINE = '1';
    const error = await errorOf(() => inspectModel('org/m'));
    expect([error.code, error.message]).toEqual([
      'ERR_MODEL_NOT_FOUND',
      `org/m: no such directory, and no complete download in ${tests.cache}`,
    ]);
    const directory = tests.folder('org/m', 'snapshots', commit);
    write(tests.folder('org/m'), { 'refs/main': commit });
    write(directory, { 'config.json': config, 'model.safetensors': 'x' });
    expect(await inspectModel('org/m')).toMatchObject({ source: 'org/m', directory, bytes: config.length + 1 });
  });
});
