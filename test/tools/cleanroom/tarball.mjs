// Packs the package with `npm pack` and checks its size, types and dependencies on this machine.
import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { check, run, succeed } from './checks.mjs';

export const root = fileURLToPath(new URL('../../..', import.meta.url));
export const work = join(root, 'build-cleanroom');
export const platform = `${process.platform}-${process.arch}`;
export const npmRoot = join(spawnSync('npm', ['root', '--global'], { encoding: 'utf8' }).stdout.trim(), 'npm');
const LIMIT = 40e6; // bytes of the packed package

const node = (args, options) => succeed(run(process.execPath, args, options));

/** Runs npm with a cache from which the rooms install later. */
export const npm = (args, cwd) =>
  node([join(npmRoot, 'bin', 'npm-cli.js'), ...args, '--no-audit', '--no-fund'], {
    cwd,
    env: { ...process.env, npm_config_cache: join(work, 'npm-cache'), npm_config_update_notifier: 'false' },
  });

/**
 * Packs the files of `npm pack` with the prebuilds of `prebuilt`. Returns the path of the tarball.
 */
async function pack(prebuilt) {
  const stage = join(work, 'stage');
  rmSync(stage, { recursive: true, force: true });
  const [{ files }] = JSON.parse(await npm(['pack', '--dry-run', '--json'], root));
  for (const { path } of files)
    if (!path.startsWith('prebuilds/')) cpSync(join(root, path), join(stage, path), { recursive: true });
  cpSync(join(prebuilt, 'prebuilds', platform), join(stage, 'prebuilds', platform), { recursive: true });
  const [{ filename }] = JSON.parse(await npm(['pack', '--json', '--pack-destination', work], stage));
  return join(work, filename);
}

/**
 * Packs the package with the prebuild for all GPUs, or with the module of build/Release. Returns
 * the path, or false.
 */
export async function makeTarball(quick) {
  const prebuilt = quick ? join(work, 'prebuilt') : root;
  const module = ['--module', join(root, 'build', 'Release', 'diffqkv.node'), '--out', prebuilt];
  const built = await check('prebuild: the module needs nothing from outside', async () => {
    const output = await node([join(root, 'scripts', 'prebuild.mjs'), ...(quick ? module : [])], {
      seconds: 7200,
    });
    return `\n${output.trim().replace(/^/gm, '       ')}`;
  });
  return built && pack(prebuilt);
}

/**
 * Resolves to whether the package can be installed. The installation fills npm's cache and leaves
 * programs for the rooms in app/types.
 */
export async function checkTarball(tarball) {
  await check('the packed size', async () => {
    const { size } = statSync(tarball);
    if (size > LIMIT) throw new Error(`${size} bytes, more than ${LIMIT}`);
    return `${size} bytes, at most ${LIMIT}`;
  });
  const bin = (name, ...path) => join(root, 'node_modules', name, ...path);
  await check('publint', async () => {
    const output = await node([bin('publint', 'src', 'cli.js'), tarball, '--strict']);
    if (!/All good!/.test(output)) throw new Error(output);
  });
  await check('are-the-types-wrong', async () => {
    const output = await node([
      bin('@arethetypeswrong/cli', 'dist', 'index.js'),
      tarball,
      '--no-emoji',
      '--format',
      'ascii',
    ]);
    if (!/No problems found/.test(output)) throw new Error(output);
  });
  const app = join(work, 'app');
  rmSync(app, { recursive: true, force: true });
  mkdirSync(join(app, 'types'), { recursive: true });
  writeFileSync(join(app, 'package.json'), '{ "private": true }');
  const installed = await check('npm install, no install script in any dependency', async () => {
    await npm(['install', tarball], app);
    const { packages } = JSON.parse(readFileSync(join(app, 'node_modules', '.package-lock.json'), 'utf8'));
    const scripts = Object.keys(packages).filter((name) => packages[name].hasInstallScript);
    if (scripts.length > 0) throw new Error(scripts.join(', '));
    return `${Object.keys(packages).length} packages`;
  });
  if (!installed) return false;
  const strict = {
    strict: true,
    skipLibCheck: false,
    noUncheckedIndexedAccess: true,
    exactOptionalPropertyTypes: true,
    target: 'es2022',
    lib: ['es2023', 'esnext.disposable'],
    types: ['node'],
    typeRoots: [join(root, 'node_modules', '@types')],
  };
  for (const [name, file, options] of [
    ['ES modules', 'use.mts', { module: 'nodenext', outDir: 'out/esm' }],
    ['CommonJS', 'use.cts', { module: 'nodenext', outDir: 'out/cjs' }],
    ['a bundler', 'use.ts', { module: 'esnext', moduleResolution: 'bundler', noEmit: true }],
  ])
    await check(`strict TypeScript: ${name}`, async () => {
      cpSync(join(root, 'test', 'tools', 'cleanroom', 'types', 'use.ts'), join(app, 'types', file));
      const config = { compilerOptions: { ...strict, rootDir: '.', ...options }, files: [file] };
      writeFileSync(join(app, 'types', 'tsconfig.json'), JSON.stringify(config));
      await node([bin('typescript', 'bin', 'tsc'), '-p', '.'], { cwd: join(app, 'types') });
    });
  return true;
}
