// npm run prebuild: builds prebuilds/<platform>-<arch>/ for the npm package. It contains the native
// module (with CUDA code for every supported GPU if nvcc is available), the shared libraries that
// the module needs and a bare system lacks, and their licenses. Then checks that the module needs
// only libraries that every system with Node has.
//
//   node scripts/prebuild.mjs [-DNAME=VALUE ...]             builds in build-prebuild/
//   node scripts/prebuild.mjs --module FILE --out FOLDER     uses this module, in FOLDER/prebuilds/
import { spawnSync } from 'node:child_process';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createRequire } from 'node:module';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const work = join(root, 'build-prebuild');
// Every system with Node has these: parts of glibc, and the C++ runtime library, which Node needs
// itself.
const SYSTEM = /^(libc|libm|libdl|libpthread|librt|libstdc\+\+|libgcc_s|ld-linux-[\w-]+)\.so(\.\d+)*$/;
// The newest symbol versions that the module may need are those of RHEL 9. Ubuntu 22.04 and Debian
// 12 have newer ones.
const FLOOR = { GLIBC: '2.34', GLIBCXX: '3.4.29', CXXABI: '1.3.13', GCC: '11.0' };

function fail(message) {
  console.error(`prebuild: ${message}`);
  process.exit(1);
}

function output(command, ...args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env: { ...process.env, LC_ALL: 'C' },
  });
  if (error) fail(`cannot run ${command}: ${error.message}`);
  if (status !== 0) fail(`${command} ${args.join(' ')} ended with ${status}: ${stderr}`);
  return stdout;
}

const { values, positionals } = parseArgs({
  // Arguments -DNAME=VALUE are passed to CMake.
  args: process.argv.slice(2).map((arg) => (arg.startsWith('-D') ? `=${arg}` : arg)),
  options: { module: { type: 'string' }, out: { type: 'string', default: root } },
  allowPositionals: true,
});
const defines = positionals.map((arg) => arg.replace(/^=/, ''));
const unknown = defines.find((arg) => !arg.startsWith('-D'));
if (unknown) fail(`'${unknown}' is not a known argument; see the head of scripts/prebuild.mjs`);
const out = resolve(values.out);
const folder = join(out, 'prebuilds', `${process.platform}-${process.arch}`);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

// prebuildify builds the module. It expects a build/Release of its own, so it gets a separate
// folder.
if (values.module) {
  const libc = existsSync('/etc/alpine-release') ? 'musl' : 'glibc';
  const copy = join(folder, `diffqkv.${libc}.node`);
  copyFileSync(values.module, copy);
  output('strip', '--strip-all', copy);
} else {
  Object.assign(process.env, {
    DIFFQKV_BUILD_DIR: 'build-prebuild',
    DIFFQKV_OUTPUT_DIR: 'build-prebuild/build/Release',
    DIFFQKV_CMAKE_ARGS: ['-DDIFFQKV_FAT=ON', process.env.DIFFQKV_CMAKE_ARGS, ...defines].filter(Boolean).join(' '),
  });
  const script = join(root, 'scripts', 'build-native.js');
  mkdirSync(work, { recursive: true });
  await promisify(createRequire(import.meta.url)('prebuildify'))({
    cwd: work,
    out,
    name: 'diffqkv',
    napi: true,
    strip: true,
    tagLibc: true,
    nodeGyp: process.platform === 'win32' ? `"${process.execPath}" "${script}"` : script,
  }).catch((error) => fail(error.message));
}
const module = join(folder, readdirSync(folder).find((name) => name.endsWith('.node')) ?? fail('no module was built'));

// The entries of a file's dynamic section that the loader reads.
function dynamic(file) {
  const entries = [...output('readelf', '-dW', file).matchAll(/\((NEEDED|RPATH|RUNPATH)\)[^[]*\[(.*)\]/g)];
  const of = (tag) => entries.filter(([, name]) => name === tag).map(([, , value]) => value);
  return { needed: of('NEEDED'), rpath: of('RPATH'), runpath: of('RUNPATH') };
}

/** The path that the loader finds for each library of a file, or '' if it finds none. */
function resolved(file) {
  const lines = output('ldd', file).matchAll(/^\s*(\S+) => (\S+|not found)/gm);
  return new Map([...lines].map(([, name, path]) => [name, path === 'not found' ? '' : path]));
}

/**
 * Copies the libraries that a system may lack into the module's folder. Returns their names and
 * origins.
 */
function copyLibraries() {
  const origins = new Map();
  for (const [name, path] of resolved(module)) {
    if (SYSTEM.test(name)) continue;
    if (path === '') fail(`${name} was not found`);
    const copy = join(folder, name);
    origins.set(name, realpathSync(path));
    copyFileSync(path, copy);
    output('strip', '--strip-unneeded', copy);
  }
  return origins;
}

/**
 * The license of each library from its Debian package, with the texts that the license refers to.
 */
function licenses(origins) {
  const texts = new Map(); // GPL and GPL-3 are one text
  const parts = [...origins].map(([name, origin]) => {
    // dpkg knows a file by its path before or after /lib became a link to /usr/lib.
    const owners = [origin, origin.replace(/^\/usr\/lib\//, '/lib/')].map((path) =>
      spawnSync('dpkg', ['-S', path], { encoding: 'utf8' }),
    );
    const owner = owners.find(({ status }) => status === 0)?.stdout.split(': ')[0];
    if (!owner) fail(`${origin} belongs to no Debian package, so its license is unknown`);
    const source = output('dpkg-query', '-W', '-f', `\${source:Package} \${source:Version}`, owner);
    const text = readFileSync(`/usr/share/doc/${owner.split(':')[0]}/copyright`, 'utf8');
    for (const [, reference] of text.matchAll(/\/usr\/share\/common-licenses\/([A-Za-z]+(?:-[\d.]*\d)?)/g))
      texts.set(readFileSync(`/usr/share/common-licenses/${reference}`, 'utf8'), reference);
    return `${name}: unchanged from Debian's package ${owner} except for stripped symbols; source: Debian's source package ${source}\n\n${text}`;
  });
  const rule = `\n${'='.repeat(100)}\n\n`;
  const referred = [...texts].map(([text, name]) => `/usr/share/common-licenses/${name}, referred to above\n\n${text}`);
  return ['The licenses of the shared libraries in this folder.\n', ...parts, ...referred].join(rule);
}

/** A version as a comparable number: '3.4.29' < '3.4.30'. */
const order = (version) =>
  version.split('.').reduce((sum, part) => sum * 1000 + Number(part), 0) * 1000 ** (3 - version.split('.').length);

function check(files) {
  const wrong = [];
  for (const file of files) {
    const name = basename(file);
    const { needed, rpath, runpath } = dynamic(file);
    const paths = [...rpath, ...runpath].filter((path) => path !== '$ORIGIN');
    if (paths.length > 0) wrong.push(`${name} looks for libraries in ${paths.join(', ')}`);
    if (file === module && files.length > 1 && rpath[0] !== '$ORIGIN') wrong.push(`${name} has no DT_RPATH of $ORIGIN`);
    for (const library of needed)
      if (!SYSTEM.test(library) && !existsSync(join(folder, library))) wrong.push(`${name} needs ${library}`);
    const newest = {};
    const uses = output('readelf', '-VW', file).split(/Version needs section/)[1] ?? '';
    for (const [, family, version] of uses.matchAll(/Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)/g)) {
      if (!newest[family] || order(version) > order(newest[family])) newest[family] = version;
    }
    for (const [family, version] of Object.entries(newest))
      if (order(version) > order(FLOOR[family]))
        wrong.push(`${name} needs ${family}_${version}, newer than ${FLOOR[family]}`);
    const versions = Object.entries(newest)
      .map((pair) => pair.join('_'))
      .join(' ');
    console.log(`${name}: ${statSync(file).size} bytes, needs ${needed.join(' ')} (${versions})`);
  }
  console.log(`ldd ${basename(module)}`);
  for (const [name, path] of resolved(module)) {
    console.log(`  ${name} => ${path}`);
    if (!SYSTEM.test(name) && path !== join(folder, name)) wrong.push(`${name} is loaded from ${path || 'nowhere'}`);
  }
  return wrong;
}

const loads = spawnSync(process.execPath, ['-p', 'JSON.stringify(require(process.argv[1]).build)', module], {
  encoding: 'utf8',
});
if (loads.status !== 0) fail(`the module does not load: ${loads.stderr}`);
if (process.platform === 'linux') {
  const origins = copyLibraries();
  if (origins.size > 0) writeFileSync(join(folder, 'LICENSES.txt'), licenses(origins));
  const wrong = check([module, ...[...origins.keys()].map((name) => join(folder, name))]);
  for (const line of wrong) console.error(`prebuild: ${line}`);
  if (wrong.length > 0) process.exit(1);
} else {
  console.log(`SKIPPED: on ${process.platform} no libraries are copied and none are checked`);
}
console.log(`prebuild: ${folder}: ${loads.stdout.trim()}`);
