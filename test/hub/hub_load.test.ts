// Model.load with the id of a model on a hub: which files come, where they are, which requests are made.

import { mkdirSync, readFileSync, readlinkSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { hubId, parseModelId } from '../../lib/hub/index';
import { Model } from '../../lib/index';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { errorOf } from '../support/devices';
import { fixturesDirectory, tldr, tldrDirectory } from '../support/fixtures';
import { gitHash } from './fake_hub.cjs';
import { config, hubOfTests, noise } from './hub';

const tests = hubOfTests();
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const load = (source: string) => Model.load(source, { device: 'cpu' });
const urls = () => tests.hub.requests.map(({ url }) => url);
const about = (part: string) => urls().filter((url) => url.includes(part));

it('loads a model that generates the same tokens as from its directory', async () => {
  const commit = tests.hub.addDirectory('org/tldr', tldrDirectory);
  const progress: { downloadedBytes: number; totalBytes: number }[] = [];
  using model = await Model.load('org/tldr', { device: 'cpu', onDownload: (p) => progress.push(p) });
  const [first] = tldr.cases;
  const { tokens, text } = await model.generate(first?.prompt as string, { maxTokens: first?.greedy.length }).result;
  expect({ tokens, text }).toEqual({ tokens: first?.greedy, text: first?.text });

  // The layout of huggingface_hub.
  expect(readFileSync(tests.folder('org/tldr', 'refs', 'main'), 'utf8')).toBe(commit);
  const snapshot = (name: string) => tests.folder('org/tldr', 'snapshots', commit, name);
  const bytes = readFileSync(join(tldrDirectory, 'config.json'));
  expect(readlinkSync(snapshot('config.json'))).toBe(`../../blobs/${gitHash(bytes)}`);
  expect(readlinkSync(snapshot('model.safetensors'))).toMatch(/^\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
  const weights = readFileSync(join(tldrDirectory, 'model.safetensors'));
  expect(readFileSync(snapshot('model.safetensors')).equals(weights)).toBe(true);

  const total = ['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json']
    .map((name) => readFileSync(join(tldrDirectory, name)).length)
    .reduce((a, b) => a + b);
  expect(progress.length).toBeGreaterThan(3);
  for (const { totalBytes } of progress) expect(totalBytes).toBe(total);
  const counts = progress.map(({ downloadedBytes }) => downloadedBytes);
  expect(counts).toEqual([...counts].sort((a, b) => a - b));
  // At most one report for each MB, and the last one.
  const steps = counts.slice(1, -1).map((count, i) => count - counts[i]!);
  expect(steps.filter((step) => step < 2 ** 20)).toEqual([]);
  expect(progress.at(-1)).toEqual({ downloadedBytes: total, totalBytes: total });
});

it('is aborted by its signal within the download, and continues it later', async () => {
  const commit = tests.hub.addDirectory('org/tldr', tldrDirectory);
  const controller = new AbortController();
  const options = { device: 'cpu', signal: controller.signal, onDownload: () => controller.abort() } as const;
  const error = await errorOf(() => Model.load('org/tldr', options));
  expect([error.name, error.code]).toEqual(['AbortError', 'ABORT_ERR']);
  expect(tests.names('org/tldr', 'snapshots', commit)).not.toContain('model.safetensors');
  tests.hub.requests = [];
  using _ = await load('org/tldr');
  const { size } = statSync(join(tldrDirectory, 'model.safetensors'));
  expect(tests.hub.bytesSent('cdn')).toBeLessThan(size);
});

it('downloads the shards of an index, and nothing that the loader does not read', async () => {
  const directory = join(fixturesDirectory, 'sigma-4-4-2-sharded-f16');
  const commit = tests.hub.addDirectory('org/sharded', directory);
  const { files } = tests.hub.models.get('org/sharded@main')!;
  const others = ['consolidated.safetensors', 'pytorch_model.bin', 'x.gguf', 'original/params.json', 'a.onnx'];
  for (const name of others) files.set(name, Buffer.from(name));
  files.set('chat_template.jinja', Buffer.from('hi'));
  using model = await load('org/sharded');
  using direct = await load(directory);
  expect(model.config).toEqual(direct.config);
  expect(model.numParameters).toBe(direct.numParameters);
  expect(tests.names('org/sharded', 'snapshots', commit)).toEqual([
    'chat_template.jinja',
    'config.json',
    'model-00001-of-00003.safetensors',
    'model-00002-of-00003.safetensors',
    'model-00003-of-00003.safetensors',
    'model.safetensors.index.json',
  ]);
  expect(tests.names('org/sharded', 'blobs').length).toBe(6);
  expect(tests.names('org/sharded').sort()).toEqual(['blobs', 'refs', 'snapshots']);

  // A shard whose link was deleted is linked again.
  const link = tests.folder('org/sharded', 'snapshots', commit, 'model-00002-of-00003.safetensors');
  rmSync(link);
  tests.hub.requests = [];
  using again = await load('org/sharded');
  expect(again.numParameters).toBe(direct.numParameters);
  expect(readlinkSync(link)).toMatch(/blobs/);
  expect(about('/resolve/')).toEqual([]);
});

it('prefers model.safetensors to an index, as the loader does', async () => {
  const directory = directories.make();
  writeCheckpoint(directory, randomCheckpoint({ seed: 9 }));
  tests.hub.addDirectory('org/both', directory);
  const { files } = tests.hub.models.get('org/both@main')!;
  files.set('model.safetensors.index.json', Buffer.from('{"weight_map": {"a": "model-1.safetensors"}}'));
  files.set('model-1.safetensors', Buffer.from('x'));
  using _ = await load('org/both');
  expect(about('model-1')).toEqual([]);
});

describe('a model that is downloaded', () => {
  let commit: string;
  beforeEach(async () => {
    commit = tests.hub.addDirectory('org/tldr', tldrDirectory);
    (await load('org/tldr')).dispose();
    tests.hub.requests = [];
  });

  it('costs one request', async () => {
    using _ = await load('org/tldr');
    expect(urls()).toEqual([expect.stringMatching(/^\/api\/models\/org\/tldr\/revision\/main\?/)]);
  });

  it('costs none with HF_HUB_OFFLINE=1', async () => {
    process.env.HF_HUB_OFFLINE = '1';
    using _ = await load('org/tldr');
    using _same = await load(`org/tldr@${commit}`);
    expect(urls()).toEqual([]);
  });

  it.each([
    ['refuses connections', 'http://127.0.0.1:9'],
    ['has no address', 'http://hub.invalid'],
  ])('loads if the hub %s, with a warning', async (_name, endpoint) => {
    process.env.HF_ENDPOINT = endpoint;
    const warn = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    try {
      using _ = await load('org/tldr');
      expect(warn.mock.calls).toEqual([
        [expect.stringMatching(/cannot reach .* Using the downloaded copy .*snapshots/)],
      ]);
    } finally {
      warn.mockRestore();
    }
  });

  it('loads if the hub sends nothing', async () => {
    process.env.HF_HUB_DOWNLOAD_TIMEOUT = '0.05';
    tests.hub.fault = () => true;
    const warn = jest.spyOn(process, 'emitWarning').mockImplementation(() => {});
    try {
      using _ = await load('org/tldr');
      const { host } = new URL(tests.hub.endpoint);
      const copy = tests.folder('org/tldr', 'snapshots', commit);
      expect(warn.mock.calls).toEqual([
        [`org/tldr: ${host} sent nothing for 0.05 s. Using the downloaded copy ${copy}`],
      ]);
    } finally {
      warn.mockRestore();
    }
  });

  it('is not used if the hub says that access is denied', async () => {
    tests.hub.models.get('org/tldr@main')!.token = 'hf_x';
    expect((await errorOf(() => load('org/tldr'))).code).toBe('ERR_ACCESS_DENIED');
  });

  it('follows a revision to a new commit, and downloads only the files that changed', async () => {
    const next = tests.hub.addDirectory('org/tldr', tldrDirectory);
    const { files } = tests.hub.models.get('org/tldr@main')!;
    files.set('generation_config.json', Buffer.from('{"eos_token_id": 3}'));
    using model = await load('org/tldr');
    expect(model.config.eosTokenIds).toContain(3);
    expect(about('/resolve/')).toEqual([`/org/tldr/resolve/${next}/generation_config.json`]);
    expect(tests.names('org/tldr', 'snapshots')).toEqual([commit, next].sort());
    expect(readFileSync(tests.folder('org/tldr', 'refs', 'main'), 'utf8')).toBe(next);
  });
});

it('resolves tags, branches with slashes, and commits', async () => {
  const first = tests.hub.add('org/many', { ...noise(1) }, { revision: 'v1.0' });
  tests.hub.add('org/many', { ...noise(2) }, { revision: 'refs/pr/3' });
  const error = (source: string) => errorOf(() => load(source)); // the weights are noise
  expect((await error('org/many@v1.0')).message).toContain(join(first, 'model.safetensors'));
  expect(readFileSync(tests.folder('org/many', 'refs', 'v1.0'), 'utf8')).toBe(first);
  expect((await error('org/many@refs/pr/3')).message).toContain('model.safetensors');
  expect(about('refs%2Fpr%2F3').length).toBe(1);
  expect((await error(`org/many@${first}`)).message).toContain(join(first, 'model.safetensors'));
  expect(tests.names('org/many', 'refs')).toEqual(['refs', 'v1.0']);
});

it('rejects a config that is not supported before it downloads anything else', async () => {
  tests.hub.add('org/mamba', { ...noise(3), 'config.json': '{"architectures": ["MambaForCausalLM"]}' });
  const error = await errorOf(() => load('org/mamba'));
  expect([error.code, error.message]).toEqual([
    'ERR_UNSUPPORTED_MODEL',
    expect.stringMatching(/^org\/mamba\/config\.json: the architecture 'MambaForCausalLM' is not supported/),
  ]);
  tests.hub.add('org/key', { ...noise(4), 'config.json': config.replace('{', '{"logit_magic": 2,') });
  expect((await errorOf(() => load('org/key'))).message).toMatch(/^org\/key\/config\.json: logit_magic/);
  const vision = JSON.stringify({ architectures: ['LlavaForConditionalGeneration'], text_config: {} });
  tests.hub.add('org/vision', { ...noise(4), 'config.json': vision });
  expect((await errorOf(() => load('org/vision'))).message).toMatch(/^org\/vision\/config\.json: .*multimodal model/);
  expect(about('.safetensors')).toEqual([]);
  expect(about('tokenizer')).toEqual([]);
});

it.each<[string, Record<string, string>, RegExp]>([
  [
    'PyTorch',
    { 'pytorch_model.bin': 'PK' },
    /^org\/no: has only PyTorch weights \(pytorch_model\.bin\).*save_pretrained/,
  ],
  ['GGUF', { 'a-q4.gguf': 'GGUF' }, /^org\/no: has only GGUF weights \(a-q4\.gguf\)/],
  ['ONNX', { 'model.onnx': 'x' }, /^org\/no: has only model\.onnx/],
  ['adapter', { 'adapter_config.json': '{}', 'adapter_model.safetensors': 'x' }, /^org\/no: a LoRA adapter/],
  ['no', { 'README.md': 'x' }, /^org\/no: the model has no model\.safetensors or model\.safetensors\.index\.json/],
  [
    'no tokenizer.json beside',
    { 'model.safetensors': 'x', 'tokenizer.model': 'x' },
    /^org\/no\/tokenizer\.model: the vocabulary is not in tokenizer\.json/,
  ],
])('rejects a model with %s weights by the names of its files', async (_name, files, message) => {
  tests.hub.add('org/no', { 'config.json': config, ...files });
  const error = await errorOf(() => load('org/no'));
  expect([error.code, error.message]).toEqual(['ERR_UNSUPPORTED_MODEL', expect.stringMatching(message)]);
  expect(about('/resolve/')).toEqual([]);
});

it('rejects a model without config.json', async () => {
  tests.hub.add('org/bare', { 'model.safetensors': 'x' });
  expect((await errorOf(() => load('org/bare'))).message).toBe('org/bare: the model has no config.json');
});

it('offline, says that a model is not downloaded or not complete', async () => {
  process.env.HF_HUB_OFFLINE = 'true';
  const expected = ['ERR_MODEL_NOT_FOUND', expect.stringMatching(/^org\/absent: no such directory, .*HF_HUB_OFFLINE/)];
  const error = await errorOf(() => load('org/absent'));
  expect([error.code, error.message]).toEqual(expected);
  // A revision whose snapshot was deleted, then a download of huggingface_hub that ended within the weights.
  const commit = 'a'.repeat(40);
  mkdirSync(tests.folder('org/absent', 'refs'), { recursive: true });
  writeFileSync(tests.folder('org/absent', 'refs', 'main'), commit);
  expect((await errorOf(() => load('org/absent'))).message).toEqual(error.message);
  mkdirSync(tests.folder('org/absent', 'snapshots', commit), { recursive: true });
  const put = (name: string, text: string) =>
    writeFileSync(tests.folder('org/absent', 'snapshots', commit, name), text);
  put('config.json', config);
  put('model.safetensors.index.json', '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}');
  put('model-1.safetensors', 'x');
  expect((await errorOf(() => load('org/absent'))).code).toBe('ERR_MODEL_NOT_FOUND');
  put('model-2.safetensors', 'x');
  expect((await errorOf(() => load('org/absent'))).message).toContain(join(commit, 'model-1.safetensors'));
  expect(urls()).toEqual([]);
});

it('takes an existing path as a path', async () => {
  const before = process.cwd();
  const directory = directories.make();
  process.chdir(directory);
  try {
    writeCheckpoint(join('org', 'local'), randomCheckpoint({}));
    writeFileSync(join('org', 'file'), 'GGUF');
    using model = await load('org/local');
    expect(model.tokenizer).toBeNull();
    expect(await hubId('org/file')).toBeNull();
    expect(await hubId('org/other')).toEqual({ name: 'org/other', revision: 'main' });
  } finally {
    process.chdir(before);
  }
  expect(urls()).toEqual([]);
});

it('knows ids from paths', () => {
  expect(parseModelId('Qwen/Qwen3-0.6B')).toEqual({ name: 'Qwen/Qwen3-0.6B', revision: 'main' });
  expect(parseModelId('a/b_c.d@v1/x-2')).toEqual({ name: 'a/b_c.d', revision: 'v1/x-2' });
  const paths = ['gpt2', '/a/b', './a', '../a', 'a/b/c', 'a//b', 'a/b@', 'a/b@..', 'a/b@x/../y', 'a/b@/x', 'a/b@x/'];
  const others = [
    'a/..',
    'a/.b',
    '.a/b',
    'a/b.',
    'a/b--c',
    'a--x/b',
    'a/b.git',
    'a/b\n',
    `a/${'b'.repeat(96)}`,
    'a\\b',
    'https://x/y',
  ];
  expect([...paths, ...others].filter((source) => parseModelId(source) !== null)).toEqual([]);
});
