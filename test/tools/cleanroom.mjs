// npm run test:cleanroom: tests the package as users get it. Packs it, checks the package (publint,
// are-the-types-wrong, strict TypeScript), and installs it in minimal systems that have only Node.
// There it must generate text, call kernels and list its devices, without network. The last line
// is "N passed, N failed, N skipped".
//
//   node test/tools/cleanroom.mjs            builds the prebuild for all GPUs; tests Debian 12 and 13,
//                                         every supported Node, bun, deno, and
//                                         `diffqkv build` in a system with a compiler
//   node test/tools/cleanroom.mjs --quick    the module of build/Release, one Debian, this Node (CI)
//   --tarball FILE  tests this package instead of packing one
//   --suites a,b    other systems that debootstrap knows, e.g. jammy (needs an Ubuntu mirror)
//   --keep          keeps the rooms under build-cleanroom/
//   --json FILE     writes the counts in Jest's format
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { check, counts, equal, run, skip, succeed } from './cleanroom/checks.mjs';
import { base, Room, whyNot } from './cleanroom/room.mjs';
import { checkTarball, makeTarball, npm, npmRoot, platform, root, work } from './cleanroom/tarball.mjs';

const here = join(root, 'test', 'tools', 'cleanroom');
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
const NODE_NEEDS = ['libstdc++6', 'libatomic1']; // Node 25 and later need the second
const prompt = '# tar\n> Archiving utility.\n';
const expected = JSON.parse(readFileSync(join(root, 'test', 'fixtures', 'sigma-tldr', 'expected.json'), 'utf8'))
  .cases[0];

/** The path of a program from an npm package, or null if it is not available. */
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

/**
 * Checks what use.mjs printed. Native files must come from `modules`, or be present on any system.
 */
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

/** What every Node version must do in a room that has the package installed. */
async function checkNode(suite, room) {
  const label = `${suite}, Node ${(await succeed(room.run('node', ['--version']))).trim()}`;
  const prebuilds = `/app/node_modules/diffqkv/prebuilds/${platform}`;
  await check(`${label}: ES module: text, kernels, loads nothing from elsewhere`, async () =>
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
      equal('the network interfaces', interfaces.trim(), '');
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
        skip(`${suite}, ${name}`, 'the registry does not have it');
        continue;
      }
      if (name.startsWith('Node')) {
        room.bring(path, 'opt/bin/node');
        await checkNode(suite, room);
        continue;
      }
      room.bring(path, 'opt/bin/other');
      await check(`${suite}, ${name}: text, kernels, loads nothing from elsewhere`, async () => {
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
    await check(`${suite} with a compiler: the built module is the one that runs`, async () =>
      checkUse(await succeed(room.run('node', ['use.mjs'])), release, /\/libgomp\.so\.1/),
    );
  } finally {
    if (!values.keep) room.remove();
  }
}

/**
 * A system for rooms. With --quick, null (counted as skipped) if it cannot be made: the mirror may
 * be unreachable.
 */
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
