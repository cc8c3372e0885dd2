// npm run test:cleanroom: the package as users get it. It is packed, looked over (publint, are-the-types-wrong, strict
// TypeScript), and installed in minimal systems that have Node alone, where it must write text, call kernels and tell what
// it runs on, without network. Ends with a line "N passed, N failed, N skipped".
//
//   node scripts/cleanroom.mjs            the prebuild for all GPUs (made first), Debian stable and the one after, every
//                                         Node that is served, bun, deno, and `diffqkv build` where there is a compiler
//   node scripts/cleanroom.mjs --quick    the module of build/Release, one Debian, this Node: what CI runs
//   --tarball FILE  this package, made elsewhere, instead of one made here
//   --suites a,b    other systems that debootstrap knows, e.g. jammy where an Ubuntu mirror is reached
//   --keep          leaves the rooms under build-cleanroom/ as they are
//   --json FILE     writes the counts as Jest does
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { check, counts, equal, run, skip, succeed } from './cleanroom/checks.mjs';
import { base, Room, whyNot } from './cleanroom/room.mjs';
import { checkTarball, makeTarball, npm, npmRoot, platform, root, work } from './cleanroom/tarball.mjs';

const here = join(root, 'scripts', 'cleanroom');
const { values } = parseArgs({
  options: {
    quick: { type: 'boolean' },
    keep: { type: 'boolean' },
    suites: { type: 'string' },
    tarball: { type: 'string' },
    json: { type: 'string' },
  },
});
const suites = (values.suites ?? (values.quick ? 'bookworm' : 'bookworm,trixie')).split(',');
const NODE_NEEDS = ['libstdc++6', 'libatomic1']; // the second from Node 25 on
const prompt = '# tar\n> Archiving utility.\n';
const expected = JSON.parse(readFileSync(join(root, 'test', 'fixtures', 'sigma-tldr', 'expected.json'), 'utf8'))
  .cases[0];

/** A program that an npm package brings, or null where it can't be had. */
async function runtime(spec, binary) {
  const folder = join(work, 'runtimes', spec.replace(/[^\w.]+/g, '-'));
  const path = join(folder, 'package', binary);
  if (existsSync(path)) return path;
  mkdirSync(folder, { recursive: true });
  try {
    const [{ filename }] = JSON.parse(await npm(['pack', spec, '--json', '--pack-destination', folder], work));
    await succeed(run('tar', ['-xzf', join(folder, filename), '-C', folder, `package/${binary}`]));
    rmSync(join(folder, filename));
    return path;
  } catch (error) {
    console.log(error.message.split('\n')[0]);
    return null;
  }
}

/** Holds what use.mjs printed to what it must be. Native files must come from `modules`, or be what any system has. */
function checkUse(stdout, modules, besides = /^$/) {
  const { text, attention, product, libraries } = JSON.parse(stdout.trim().split('\n').pop());
  equal('the text', text, expected.text);
  equal('attention over V = 1', attention, [1]);
  equal('the product', product, [32]);
  const system =
    /^\/(usr\/)?lib(64)?\/(\w+-linux-gnu\/)?(libc|libm|libdl|libpthread|librt|libstdc\+\+|libgcc_s|libatomic|ld-linux-[\w-]+)\.so/;
  const foreign = libraries.filter((path) => !system.test(path) && !besides.test(path) && !path.startsWith(modules));
  if (foreign.length > 0) throw new Error(`loaded from elsewhere: ${foreign.join(' ')}`);
  const own = libraries.filter((path) => path.startsWith(modules)).map((path) => path.slice(modules.length + 1));
  if (own.length === 0) throw new Error(`no module was loaded from ${modules}`);
  return own.sort().join(' ');
}

/** What every Node must do in a room where the package is installed. */
async function checkNode(suite, room) {
  const label = `${suite}, Node ${(await succeed(room.run('node', ['--version']))).trim()}`;
  const prebuilds = `/app/node_modules/diffqkv/prebuilds/${platform}`;
  await check(`${label}: ES module: text, kernels, nothing loaded from elsewhere`, async () =>
    checkUse(await succeed(room.run('node', ['use.mjs'])), prebuilds),
  );
  await check(`${label}: CommonJS, a worker thread, coded errors`, async () => {
    const output = JSON.parse(await succeed(room.run('node', ['use.cjs'])));
    equal('the answer', output, { zeros: [0, 0], worker: [0, 0], same: true, error: 'ERR_INVALID_CHECKPOINT' });
  });
  for (const file of ['esm/use.mjs', 'cjs/use.cjs'])
    await check(`${label}: strict TypeScript with \`using\`, ${file}`, async () => {
      const output = JSON.parse(await succeed(room.run('node', [`types/out/${file}`])));
      const wanted = { cpu: true, one: 1, code: 'ERR_DISPOSED', wrong: 'f64', tokens: 8, finishReason: 'length' };
      equal('the answer', output, wanted);
    });
  await check(`${label}: npx diffqkv generate`, async () => {
    const args = ['--offline', 'diffqkv', 'generate', '--prompt', prompt, '--max-tokens', '40'];
    equal('the text', (await succeed(room.run('npx', args, offline))).trimEnd(), expected.text.trimEnd());
  });
  await check(`${label}: npx diffqkv info`, async () => {
    const devices = JSON.parse(
      await succeed(room.run('npx', ['--offline', 'diffqkv', 'info', '--json'], offline)),
    ).devices;
    const cpu = devices.find(({ kind }) => kind === 'cpu');
    if (!cpu?.usable) throw new Error(`no usable cpu in ${JSON.stringify(devices)}`);
    return `${cpu.details.simd}, linear by ${cpu.details.linear}`;
  });
}

async function furnish(room, tarball) {
  mkdirSync(join(room.path, 'app'));
  mkdirSync(join(room.path, 'opt', 'bin'), { recursive: true });
  room.bring(process.execPath, 'opt/bin/node');
  room.bring(npmRoot, 'opt/npm');
  for (const name of ['npm', 'npx'])
    writeFileSync(join(room.path, 'opt', 'bin', name), `#!/bin/sh\nexec node /opt/npm/bin/${name}-cli.js "$@"\n`, {
      mode: 0o755,
    });
  room.bring(join(work, 'npm-cache'), 'npm-cache');
  room.bring(tarball, 'app/diffqkv.tgz');
  for (const name of ['use.mjs', 'use.cjs']) room.bring(join(here, name), `app/${name}`);
  room.bring(join(work, 'app', 'types'), 'app/types');
  writeFileSync(join(room.path, 'app', 'package.json'), '{ "private": true }');
}

const offline = {
  env: { npm_config_cache: '/npm-cache', npm_config_offline: 'true', npm_config_update_notifier: 'false' },
};
const install = (room) => succeed(room.run('npm', ['install', './diffqkv.tgz', '--no-audit', '--no-fund'], offline));

async function bareRoom(suite, from, tarball, runtimes) {
  const room = new Room(from, join(work, `room-${suite}`));
  try {
    await check(`${suite}: a bare system`, async () => {
      const found = room.whatItShouldLack();
      if (found.length > 0) throw new Error(`it has ${found.join(', ')}`);
      return readFileSync(join(room.path, 'etc', 'os-release'), 'utf8').match(/PRETTY_NAME="(.*)"/)[1];
    });
    await furnish(room, tarball);
    await check(`${suite}: no network`, async () => {
      const interfaces = await succeed(room.run('node', ['-p', 'Object.keys(os.networkInterfaces()).join()']));
      equal('what there is', interfaces.trim(), '');
    });
    if (!(await check(`${suite}: npm install without network or compiler`, () => install(room).then(() => '')))) return;
    await checkNode(suite, room);
    await check(`${suite}: npx diffqkv build says what is missing`, async () => {
      const { status, stderr } = await room.run('npx', ['--offline', 'diffqkv', 'build'], offline);
      equal('the status', status, 1);
      if (!/cmake, g\+\+, make missing/.test(stderr)) throw new Error(stderr);
    });
    for (const { name, path, args } of runtimes) {
      if (!path) {
        skip(`${suite}, ${name}`, 'it is not to be had from the registry');
        continue;
      }
      if (name.startsWith('Node')) {
        room.bring(path, 'opt/bin/node');
        await checkNode(suite, room);
        continue;
      }
      room.bring(path, 'opt/bin/other');
      await check(`${suite}, ${name}: text, kernels, nothing loaded from elsewhere`, async () => {
        const output = await succeed(room.run('other', [...args, 'use.mjs'], { env: { DENO_NO_UPDATE_CHECK: '1' } }));
        return checkUse(output, `/app/node_modules/diffqkv/prebuilds/${platform}`);
      });
    }
  } finally {
    if (!values.keep) room.remove();
  }
}

async function compilerRoom(suite, from, tarball) {
  const room = new Room(from, join(work, `room-${suite}-compiler`));
  try {
    await furnish(room, tarball);
    await install(room);
    const release = '/app/node_modules/diffqkv/build/Release';
    await check(`${suite} with a compiler: npx diffqkv build`, async () => {
      const options = { ...offline, seconds: 1800 };
      const output = await succeed(room.run('npx', ['--offline', 'diffqkv', 'build'], options));
      return output.trim().split('\n').pop();
    });
    await check(`${suite} with a compiler: what was built is what runs`, async () =>
      checkUse(await succeed(room.run('node', ['use.mjs'])), release, /\/libgomp\.so\.1/),
    );
  } finally {
    if (!values.keep) room.remove();
  }
}

/** A system to make rooms of, or with --quick null, which is counted as skipped: the mirror may be out of reach. */
async function systemOf(suite, packages) {
  try {
    return await base(work, suite, packages);
  } catch (error) {
    if (!values.quick) throw new Error(`${suite}: debootstrap can't make it: ${error.message}`);
    skip(suite, `debootstrap can't make it: ${error.message}`);
    return null;
  }
}

async function main() {
  mkdirSync(work, { recursive: true });
  const tarball = values.tarball ? resolve(values.tarball) : await makeTarball(values.quick);
  if (!tarball || !(await checkTarball(tarball))) return;

  const why = whyNot();
  if (why) {
    skip('the rooms', why);
    return;
  }
  const x64 = process.arch === 'x64';
  const runtimes = [];
  if (!values.quick) {
    for (const major of [22, 24, 26])
      runtimes.push({ name: `Node ${major}`, path: await runtime(`node-linux-${process.arch}@${major}`, 'bin/node') });
    const bun = await runtime(`@oven/bun-linux-${x64 ? 'x64' : 'aarch64'}@1`, 'bin/bun');
    const deno = await runtime(`@deno/linux-${process.arch}-glibc@2`, 'deno');
    runtimes.push({ name: 'bun', path: bun, args: [] });
    runtimes.push({ name: 'deno', path: deno, args: ['run', '-A', '--node-modules-dir=manual'] });
  }
  for (const suite of suites) {
    const from = await systemOf(suite, NODE_NEEDS);
    if (from) await bareRoom(suite, from, tarball, runtimes);
  }
  if (values.quick) skip('diffqkv build in a room with a compiler', 'it takes minutes: npm run test:cleanroom');
  else {
    const from = await systemOf(suites[0], [...NODE_NEEDS, 'g++', 'make', 'cmake', 'nlohmann-json3-dev']);
    if (from) await compilerRoom(suites[0], from, tarball);
  }
}

try {
  await main();
} catch (error) {
  counts.failed++;
  console.log(`FAIL ${error.stack}`);
}
if (!values.keep) for (const name of ['stage', 'app']) rmSync(join(work, name), { recursive: true, force: true });
if (values.json) {
  const report = {
    success: counts.failed === 0,
    numTotalTests: counts.passed + counts.failed + counts.skipped,
    numPassedTests: counts.passed,
    numFailedTests: counts.failed,
    numPendingTests: counts.skipped,
    numTodoTests: 0,
    numRuntimeErrorTestSuites: 0,
  };
  writeFileSync(values.json, JSON.stringify(report));
}
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exitCode = counts.failed === 0 && counts.passed > 0 ? 0 : 1;
