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

const compile = 'run `npx diffqkv build` (in a clone: npm run build)';
const unavailable = 'ERR_DEVICE_UNAVAILABLE';
const musl =
  'The C library of this system is not glibc (Alpine Linux has musl), which the prebuilt modules need: use a system ' +
  'with glibc, such as Debian or Ubuntu (Docker: node:22-slim)';
const old = (needed: string) =>
  `The system is too old: the module needs ${needed}, and this system has glibc 2.31. Use a newer system, such as ` +
  `Debian 12, Ubuntu 22.04 or RHEL 9, or compile a module: ${compile}`;
const cannot = (cause: string) => `cannot load the native module ${file}: ${cause}`;
const missing = 'No native build was found';
const loader = 'Error loading shared library ld-linux-x86-64.so.2: No such file or directory';
const glibc = `/lib/x86_64-linux-gnu/libc.so.6: version \`GLIBC_2.34' not found (required by ${file})`;
const libstdcxx = `/lib/x86_64-linux-gnu/libstdc++.so.6: version \`GLIBCXX_3.4.29' not found (required by ${file})`;
const quoted = "version 'GLIBC_2.38' not found";
it.each<[string, string, string, Partial<SystemFacts>, string, string]>([
  [
    ...(['no module for the platform', '', missing, { platform: 'linux-riscv64' }, unavailable] as const),
    `no native module for linux-riscv64: ${compile}`,
  ],
  ['no module on musl', '', missing, { glibc: null }, unavailable, `no native module for linux-x64. ${musl}`],
  ['a module for glibc on musl', file, loader, { glibc: null }, unavailable, `${cannot(loader)}. ${musl}`],
  ['an old glibc', file, glibc, {}, unavailable, `${cannot(glibc)}. ${old('GLIBC 2.34')}`],
  ['an old libstdc++', file, libstdcxx, {}, unavailable, `${cannot(libstdcxx)}. ${old('GLIBCXX 3.4.29')}`],
  ['an old glibc, with other quotes', file, quoted, {}, unavailable, `${cannot(quoted)}. ${old('GLIBC 2.38')}`],
  [
    ...(['bundled code', '', 'bundled', { isBundled: true }, unavailable] as const),
    `no native module: the code of diffqkv was bundled, and its files are not in ${projectRoot}. Exclude it from the ` +
      "bundle (esbuild: --external:diffqkv; webpack: externals: { diffqkv: 'commonjs diffqkv' }) and install diffqkv " +
      'in node_modules beside the bundle',
  ],
  ['a module of bundled code', file, 'x', { isBundled: true }, unavailable, cannot('x')],
  [
    ...(['no memory', file, 'failed to map segment from shared object', {}, 'ERR_OUT_OF_MEMORY'] as const),
    cannot('failed to map segment from shared object'),
  ],
  ['no memory', file, 'Cannot allocate memory', {}, 'ERR_OUT_OF_MEMORY', cannot('Cannot allocate memory')],
  ['anything else', file, 'invalid ELF header', {}, unavailable, cannot('invalid ELF header')],
  ['other systems', file, 'x', { platform: 'darwin-arm64', glibc: undefined }, unavailable, cannot('x')],
])('%s: %s %s', (_, path, cause, facts, code, message) => {
  const error = loadError(path, cause, { ...debian, ...facts });
  expect({ code: error.code, message: error.message }).toEqual({ code, message });
});

describe('addon', () => {
  const before = process.env.DIFFQKV_MODULE;
  afterEach(() => {
    if (before === undefined) delete process.env.DIFFQKV_MODULE;
    else process.env.DIFFQKV_MODULE = before;
  });

  /** The message of a fresh copy of lib/addon.ts. */
  function message(): string {
    let text = '';
    jest.isolateModules(() => {
      const { addon } = require('../../lib/addon');
      try {
        addon();
      } catch (error) {
        text = `${(error as { code: string }).code} ${(error as Error).message}`;
      }
    });
    return text;
  }

  it('names the module that does not load, and the first line of the cause', () => {
    process.env.DIFFQKV_MODULE = '/nowhere/x.node';
    expect(message()).toMatch(
      /^ERR_DEVICE_UNAVAILABLE cannot load the native module \/nowhere\/x\.node: Cannot find module '.*x\.node'.*$/,
    );
  });

  it('loads one module once', () => {
    jest.isolateModules(() => {
      const { addon } = require('../../lib/addon');
      expect(addon()).toBe(addon());
      expect(addon().listDevices()[0].id).toBe('cpu');
    });
  });

  it('looks for the module of the package if DIFFQKV_MODULE is empty', () => {
    process.env.DIFFQKV_MODULE = '';
    const path = jest.fn((root: string): string => {
      throw new Error(`nothing in ${root}\nmore`);
    });
    jest.doMock('node-gyp-build', () => ({ path }));
    try {
      expect(message()).toBe(`${unavailable} no native module for ${process.platform}-${process.arch}: ${compile}`);
      expect(path.mock.calls).toEqual([[projectRoot]]);
    } finally {
      jest.dontMock('node-gyp-build');
    }
  });
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
