// The npm package: the files of `npm pack`, the exports, and the checks of scripts/prebuild.mjs.
// test/tools/cleanroom.mjs installs the package in bare systems.

import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { temporaryDirectories } from '../support/checkpoints';
import { builtIndex, runNode } from '../support/children';
import { projectRoot } from '../support/fixtures';

const directories = temporaryDirectories();
afterAll(() => directories.cleanUp());

const manifest = JSON.parse(readFileSync(join(projectRoot, 'package.json'), 'utf8'));
const filesUnder = (folder: string) =>
  (readdirSync(join(projectRoot, folder), { recursive: true, withFileTypes: true }) as import('node:fs').Dirent[])
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath ?? entry.path, entry.name).slice(projectRoot.length + 1));

describe('the tarball', () => {
  let files: string[];

  beforeAll(() => {
    if (!existsSync(builtIndex)) throw new Error('dist/ is missing: run `npm run build` first');
    const output = execFileSync('npm', ['pack', '--dry-run', '--json', '--offline'], {
      cwd: projectRoot,
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    files = (JSON.parse(output)[0].files as { path: string }[]).map(({ path }) => path);
  });

  it('contains every file that is loaded, and every source that npx diffqkv build compiles', () => {
    const wanted = [
      'LICENSE',
      'README.md',
      'THIRD-PARTY-NOTICES.md',
      'package.json',
      'CMakeLists.txt',
      'scripts/build-native.js',
      'dist/cli/main.js',
      'dist/bench/main.js',
      ...['csrc', 'cuda', 'models', 'prebuilds'].flatMap(filesUnder).filter((path) => path !== 'prebuilds/README.md'),
      ...filesUnder('lib').map((path) => `dist/${path.replace(/\.ts$/, '.js').replace(/\.mts$/, '.mjs')}`),
    ];
    expect(wanted.filter((path) => !files.includes(path))).toEqual([]);
  });

  it('contains no binding.gyp, which would make npm need a compiler, and no development files', () => {
    const allowed = /^(dist|csrc|cuda|models|prebuilds\/\w+-\w+)\/|^[^/]+\.(md|json|txt)$|^LICENSE$/;
    const others = files.filter((path) => !allowed.test(path) || /\.tsbuildinfo$|^dist\/(test|scripts)/.test(path));
    expect(others).toEqual(['scripts/build-native.js']);
    expect(files).not.toContain('binding.gyp');
  });

  it('contains no emulation, and no part of the bench that needs a checkout', () => {
    const unwanted = /^bench\/|^dist\/bench\/(peers\/|counters|kv_quality)|emulat/;
    expect(files.filter((path) => unwanted.test(path))).toEqual([]);
  });
});

it('installs without an install script in the package or a dependency', () => {
  expect(['preinstall', 'install', 'postinstall', 'prepare'].filter((name) => name in manifest.scripts)).toEqual([]);
  expect(manifest.gypfile).toBe(false); // else npm adds a script when it publishes
  const { packages } = JSON.parse(readFileSync(join(projectRoot, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; hasInstallScript?: boolean }>;
  };
  const installed = Object.entries(packages).filter(([name, { dev }]) => name !== '' && !dev);
  expect(installed.length).toBeGreaterThan(0);
  expect(installed.filter(([, { hasInstallScript }]) => hasInstallScript)).toEqual([]);
});

it('exports the same objects under the same names to ES modules and CommonJS', async () => {
  const script = `
    const { createRequire } = await import('node:module');
    const required = createRequire(process.cwd() + '/')('diffqkv');
    const imported = await import('diffqkv');
    const names = Object.keys(imported).filter((name) => name !== 'default' && name !== 'module.exports').sort();
    const same = names.every((name) => imported[name] === required[name]);
    console.log(JSON.stringify({ names, required: Object.keys(required).sort(), same }));`;
  // A package can import itself by name, through its exports.
  const { status, stdout, stderr } = await runNode(['--input-type=module', '-e', script], { cwd: projectRoot });
  expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
  const { names, required, same } = JSON.parse(stdout);
  expect(names).toContain('Model');
  expect(names).toEqual(required);
  expect(same).toBe(true);
});

it('passes publint', async () => {
  const cli = join(projectRoot, 'node_modules', 'publint', 'src', 'cli.js');
  const { status, stdout, stderr } = await runNode([cli, projectRoot, '--strict']);
  expect({ status, output: stdout + stderr }).toEqual({ status: 0, output: expect.stringContaining('All good!') });
});

// Needs dpkg to find licenses.
const onDebian = existsSync('/usr/bin/dpkg') ? describe : describe.skip;
onDebian('scripts/prebuild.mjs', () => {
  const prebuild = (module: string, out: string) =>
    runNode([join(projectRoot, 'scripts', 'prebuild.mjs'), '--module', module, '--out', out]);

  it('copies the required libraries and their licenses next to the module', async () => {
    const out = directories.make();
    const { status, stdout, stderr } = await prebuild(join(projectRoot, 'build', 'Release', 'diffqkv.node'), out);
    expect({ status, stderr }).toEqual({ status: 0, stderr: '' });
    const folder = join(out, 'prebuilds', `${process.platform}-${process.arch}`);
    const names = readdirSync(folder);
    expect(names).toEqual(expect.arrayContaining(['LICENSES.txt', 'diffqkv.glibc.node', 'libgomp.so.1']));
    expect(stdout).toContain(`libgomp.so.1 => ${join(folder, 'libgomp.so.1')}`);
    const licenses = readFileSync(join(folder, 'LICENSES.txt'), 'utf8');
    for (const name of names.filter((name) => /\.so\./.test(name))) expect(licenses).toContain(`\n${name}: `);
  });

  it('rejects a module that searches elsewhere for libraries or needs newer systems than supported', async () => {
    const folder = directories.make();
    const source = `
      #include <condition_variable>
      #include <mutex>
      std::condition_variable changed;
      extern "C" __attribute__((visibility("default"))) void* napi_register_module_v1(void*, void* exports) { return exports; }
      extern "C" void wait(std::unique_lock<std::mutex>& lock) { changed.wait(lock); }`;
    writeFileSync(join(folder, 'module.cc'), source);
    const module = join(folder, 'module.node');
    const args = ['-shared', '-fPIC', '-Wl,--no-as-needed,-rpath,/opt/lib', join(folder, 'module.cc'), '-lgomp'];
    const compiled = spawnSync(process.env.CXX || 'g++', [...args, '-o', module], { encoding: 'utf8' });
    expect(compiled).toMatchObject({ status: 0, stderr: '' });
    const { status, stderr } = await prebuild(module, folder);
    expect(status).toBe(1);
    expect(stderr).toContain('looks for libraries in /opt/lib');
    expect(stderr).toContain('has no DT_RPATH of $ORIGIN');
    expect(stderr).toMatch(/libgomp\.so\.1 is loaded from \/(usr\/)?lib/);
    // GCC 11's library lacks this version of condition_variable::wait, which GCC 12 and later need.
    if (!/^11\b/.test(spawnSync(process.env.CXX || 'g++', ['-dumpversion'], { encoding: 'utf8' }).stdout))
      expect(stderr).toMatch(/needs GLIBCXX_3\.4\.30/);
  });
});
