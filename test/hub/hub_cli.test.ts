// `diffqkv pull`, `list` and `info`, and the other commands with the id of a model, as a user runs them.

import { spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { randomCheckpoint, temporaryDirectories, writeCheckpoint } from '../support/checkpoints';
import { builtCli, type RunOptions, runNode } from '../support/children';
import { fixturesDirectory, projectRoot, tldr, tldrDirectory } from '../support/fixtures';
import { config, hubOfTests, noise, weightBytes } from './hub';

const tests = hubOfTests();
const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const cli = (args: string[], options?: RunOptions) => runNode([builtCli, ...args], options);

it('pull downloads a model and prints its directory; generate, info and convert take its id', async () => {
  const commit = tests.hub.addDirectory('org/tldr', tldrDirectory, { revision: 'v1' });
  const directory = tests.folder('org/tldr', 'snapshots', commit);
  expect(await cli(['pull', 'org/tldr@v1'])).toMatchObject({ status: 0, stdout: `${directory}\n`, stderr: '' });
  const { stdout } = await cli(['pull', 'org/tldr@v1', '--json']);
  expect(JSON.parse(stdout)).toEqual({ name: 'org/tldr', revision: 'v1', commit, directory });

  const env = { HF_HUB_OFFLINE: '1' };
  const [first] = tldr.cases;
  const args = [
    'generate',
    '--model',
    'org/tldr@v1',
    '--prompt',
    first?.prompt as string,
    '--max-tokens',
    '10',
    '--json',
  ];
  expect(JSON.parse((await cli(args, { env })).stdout).tokens).toEqual(first?.greedy.slice(0, 10));
  const info = JSON.parse((await cli(['info', '--model', 'org/tldr@v1', '--json'], { env })).stdout);
  expect(info.model.kvBytesPerToken).toMatchObject({ k: 768, v: 1536 });
  const out = join(directories.make(), 'out');
  expect(await cli(['convert', 'org/tldr@v1', out, '--key-heads', '1'], { env })).toMatchObject({
    status: 0,
    stderr: '',
  });
  expect(JSON.parse(readFileSync(join(out, 'config.json'), 'utf8')).num_key_heads).toBe(1);
});

it('pull ends with status 1 and one line for an error', async () => {
  const outcome = await cli(['pull', 'org/none']);
  expect(outcome).toMatchObject({ status: 1, stdout: '' });
  expect(outcome.stderr).toMatch(
    /^diffqkv: org\/none: no such directory, and no such model at .* \(ERR_MODEL_NOT_FOUND\)\n$/,
  );
  expect((await cli(['pull', '../x'])).stderr).toContain("'../x' is not the id of a model: it must be org/name");
});

it('Ctrl-C ends pull with status 130, and the next pull continues', async () => {
  tests.hub.add('org/interrupt', noise(100));
  let interrupt = () => {};
  tests.hub.fault = ({ host, response }) => {
    if (host !== 'cdn') return false;
    response.writeHead(200, { 'content-length': weightBytes }).write(Buffer.alloc(1000));
    setTimeout(() => interrupt(), 300);
    return true;
  };
  const outcome = await cli(['pull', 'org/interrupt'], {
    onStart: (child) => {
      interrupt = () => child.kill('SIGINT');
    },
  });
  expect(outcome).toMatchObject({ status: 130, stdout: '', stderr: '\n' });
  tests.hub.fault = () => false;
  expect((await cli(['pull', 'org/interrupt'])).status).toBe(0);
});

it('list prints what is in the cache and whether it loads', async () => {
  expect((await cli(['list'])).stdout).toBe(`no models in ${tests.cache}\n`);
  const commit = tests.hub.addDirectory('org/tldr', tldrDirectory);
  await cli(['pull', 'org/tldr']);
  const put = (name: string, files: Record<string, string>) => {
    mkdirSync(tests.folder(name, 'snapshots', 'b'.repeat(40)), { recursive: true });
    for (const [file, text] of Object.entries(files))
      writeFileSync(tests.folder(name, 'snapshots', 'b'.repeat(40), file), text);
  };
  put('org/half', { 'config.json': config });
  put('other/mamba', { 'config.json': '{"architectures": ["MambaForCausalLM"]}', 'model.safetensors': 'x' });
  mkdirSync(join(tests.cache, 'datasets--x--y'));
  const { status, stdout } = await cli(['list']);
  expect(status).toBe(0);
  expect(stdout.split('\n')).toEqual([
    `org/half     bbbbbbbbbb     0.00 MB  does not load: not all files are downloaded  `,
    `org/tldr     ${commit.slice(0, 10)}    15.00 MB  loads  (main)`,
    expect.stringMatching(
      /^other\/mamba {2}bbbbbbbbbb +0\.00 MB {2}does not load: other\/mamba\/config\.json: the architecture/,
    ),
    '',
  ]);
  const { models } = JSON.parse((await cli(['list', '--json'])).stdout);
  expect(models.map(({ name, complete }: { name: string; complete: boolean }) => [name, complete])).toEqual([
    ['org/half', false],
    ['org/tldr', true],
    ['other/mamba', true],
  ]);
  expect(models[1]).toMatchObject({ commit, revisions: ['main'], problem: null });
});

it('info describes a model on the hub without its weights', async () => {
  const directory = join(fixturesDirectory, 'sigma-4-4-2-sharded-f16');
  tests.hub.addDirectory('org/sharded', directory, { safetensors: { total: 516736, parameters: {} } });
  const { status, stdout } = await cli(['info', 'org/sharded']);
  expect([status, stdout]).toEqual([0, expect.stringMatching(/^supported +yes$/m)]);
  expect(stdout).toMatch(/^parameters +0\.52 M$/m);
  expect(stdout).toMatch(/^download +1\.04 MB$/m);
  expect(tests.hub.requests.filter(({ url }) => url.endsWith('.safetensors'))).toEqual([]);
  expect(existsSync(tests.cache)).toBe(false);
  tests.hub.add('org/mamba', { ...noise(101), 'config.json': '{"architectures": ["MambaForCausalLM"]}' });
  const mamba = JSON.parse((await cli(['info', 'org/mamba', '--json'])).stdout);
  expect(mamba).toMatchObject({ architecture: 'MambaForCausalLM', kvBytesPerToken: null });
  expect(mamba.problem.code).toBe('ERR_UNSUPPORTED_MODEL');
});

it('info describes a directory as the loaded model does', async () => {
  const folders = [tldrDirectory, join(fixturesDirectory, 'sigma-8-1-4'), join(fixturesDirectory, 'llama-gqa-f32')];
  const half = directories.make();
  writeCheckpoint(half, randomCheckpoint({ keyHeadDim: 8, keyLift: { kind: 'linear', position: 'after_rope' } }));
  for (const folder of [...folders, half]) {
    const described = JSON.parse((await cli(['info', folder, '--json'])).stdout);
    const { model } = JSON.parse((await cli(['info', '--model', folder, '--json', '--device', 'cpu'])).stdout);
    const { k, v } = model.kvBytesPerToken;
    expect(described).toMatchObject({ kvBytesPerToken: { k, v }, numParameters: model.numParameters, problem: null });
  }
  expect(await cli(['info', '/nowhere'])).toMatchObject({
    status: 1,
    stderr: expect.stringContaining('ERR_INVALID_CHECKPOINT'),
  });
});

const mount = spawnSync('unshare', ['-rm', 'sh', '-c', 'mount -t tmpfs -o size=1m none /mnt'], { encoding: 'utf8' });
const onSmallDisk = mount.status === 0 ? it : it.skip;
onSmallDisk(`on a disk of 2 MB${mount.status === 0 ? '' : ' (SKIPPED: no mount namespaces)'}`, () => {
  tests.hub.add('org/big', noise(102));
  const script = `mount -t tmpfs -o size=2m none /mnt && exec "$0" "$@"`;
  const args = ['-rm', 'sh', '-c', script, process.execPath, builtCli, 'pull', 'org/big'];
  return runUnshared(args).then(({ status, stderr }) => {
    expect([status, stderr]).toEqual([1, expect.stringMatching(/needs 3000000 more bytes, and .* \(ERR_CACHE\)\n$/)]);
  });
});

/** Runs a command of which this process serves the hub, so not by spawnSync. */
async function runUnshared(args: string[]) {
  const env = { ...process.env, HF_HUB_CACHE: '/mnt/cache' };
  const child = spawn('unshare', args, { cwd: projectRoot, env, stdio: ['ignore', 'pipe', 'pipe'] });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const status = await new Promise<number | null>((resolve) => child.on('close', resolve));
  return { status, stderr };
}
