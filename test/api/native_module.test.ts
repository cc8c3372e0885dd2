// The messages of a native module that cannot be loaded.

import { cpSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { loadError, type SystemFacts } from '../../lib/addon';
import { temporaryDirectories } from '../support/checkpoints';
import { builtIndex, runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const debian: SystemFacts = { platform: 'linux-x64', isBundled: false, glibc: '2.31' };
const file = '/app/node_modules/diffqkv/prebuilds/linux-x64/diffqkv.glibc.node';

it.each<[string, string, string, Partial<SystemFacts>, string, RegExp]>([
  [
    'no module for the platform',
    '',
    'No native build was found',
    { platform: 'linux-riscv64' },
    'ERR_DEVICE_UNAVAILABLE',
    /^no native module for linux-riscv64: run `npx diffqkv build`/,
  ],
  [
    'no module on musl',
    '',
    'No native build was found',
    { glibc: null },
    'ERR_DEVICE_UNAVAILABLE',
    /^no native module for linux-x64\..*not glibc.*musl.*use a system with glibc/,
  ],
  [
    'a module for glibc on musl',
    file,
    'Error loading shared library ld-linux-x86-64.so.2: No such file or directory',
    { glibc: null },
    'ERR_DEVICE_UNAVAILABLE',
    /diffqkv\.glibc\.node: Error loading.*not glibc.*musl.*use a system with glibc/,
  ],
  [
    'an old glibc',
    file,
    `/lib/x86_64-linux-gnu/libc.so.6: version \`GLIBC_2.34' not found (required by ${file})`,
    {},
    'ERR_DEVICE_UNAVAILABLE',
    /needs GLIBC 2\.34, and this system has glibc 2\.31\. Use a newer system.*npx diffqkv build/,
  ],
  [
    'an old libstdc++',
    file,
    `/lib/x86_64-linux-gnu/libstdc++.so.6: version \`GLIBCXX_3.4.29' not found (required by ${file})`,
    {},
    'ERR_DEVICE_UNAVAILABLE',
    /needs GLIBCXX 3\.4\.29.*Use a newer system/,
  ],
  [
    'bundled code',
    '',
    'bundled',
    { isBundled: true },
    'ERR_DEVICE_UNAVAILABLE',
    /bundled.*esbuild: --external:diffqkv; webpack: externals/,
  ],
  ['no memory', file, 'failed to map segment from shared object', {}, 'ERR_OUT_OF_MEMORY', /failed to map segment/],
  ['anything else', file, 'invalid ELF header', {}, 'ERR_DEVICE_UNAVAILABLE', /node: invalid ELF header$/],
  ['other systems', file, 'x', { platform: 'darwin-arm64', glibc: undefined }, 'ERR_DEVICE_UNAVAILABLE', /node: x$/],
])('%s', (_, path, cause, facts, code, message) => {
  const error = loadError(path, cause, { ...debian, ...facts });
  expect({ code: error.code, message: error.message }).toEqual({ code, message: expect.stringMatching(message) });
});

it('code that was copied into another package says so, and does not load a module of that package', async () => {
  const app = directories.make();
  cpSync(join(dirname(builtIndex), '..'), join(app, 'dist'), { recursive: true });
  symlinkSync(join(projectRoot, 'node_modules'), join(app, 'node_modules'));
  writeFileSync(join(app, 'package.json'), '{ "name": "app" }');
  mkdirSync(join(app, 'build', 'Release'), { recursive: true });
  writeFileSync(join(app, 'build', 'Release', 'other.node'), '');
  const script = `const { listDevices } = require('./dist/lib/index.js');
    try { listDevices(); } catch (error) { console.log(error.code, error.message); }`;
  const outcome = await runNode(['-e', script], { cwd: app, env: { DIFFQKV_MODULE: '' } });
  expect(outcome).toMatchObject({ status: 0, stderr: '' });
  expect(outcome.stdout).toMatch(/^ERR_DEVICE_UNAVAILABLE .*bundled.*--external:diffqkv/);
  expect(outcome.stdout).toContain(app);
});
