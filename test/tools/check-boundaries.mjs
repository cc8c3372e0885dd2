// The dependency rules of docs/design.md. Every rule has samples that break it, and a rule that finds nothing in one of
// its samples fails.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { root } from './run.mjs';

const include = (header) => new RegExp(`^\\s*#\\s*include\\s*[<"](${header})`);

const MAY_IMPORT = { lib: [], bench: ['lib'], server: ['lib'], cli: ['bench', 'lib', 'server'] };
/** Whether the line imports a folder that it may not, or a part of lib/ other than lib/index. */
function breaksArrow(line, path) {
  const name = /(?:from|import|import\(|require\()\s*['"](\.[^'"]+)['"]/.exec(line)?.[1] ?? '.';
  const target = posix.join(dirname(path), name);
  const [from, to] = [path.split('/')[0], target.split('/')[0]];
  if (from === to || !['bench', 'cli', 'lib', 'server', 'test'].includes(to)) return false;
  // Only bench/ needs the limits of the CPU that the native module measures. Messages of cli/ are those of lib/, and so is
  // its access to the hub.
  const internals = { bench: /^lib\/ceilings$/, cli: /^lib\/(errors|explain|hub\/index)$/ };
  const isPublic = /^lib(\/index)?$/.test(target) || internals[from]?.test(target);
  return !MAY_IMPORT[from].includes(to) || (to === 'lib' && !isPublic);
}

/**
 * A bare head_dim is right if there is only one head: RoPE, K or V by itself, Hugging Face's key, tests and benches. So is
 * the field of a KvView.
 */
const oneHeadSize =
  /rope|rotary|quantize|kv_(append|gather|view)|lifted_keys|attention\/(gemm|top_k)|backend\/ops\.h|addon\/kernels\.cc|model\/(config|architectures)\.cc|presets\.ts|convert_config\.ts|^(test|bench)\//;
const bareHeadDim =
  /^(?!.*(rope|rotary|positions|inv_freq|p\.head_dim = config_)).*(?<!\b(k|v|kv(\(\))?|[kv]_cache)\.)(?<!, \.)\b(head_dim|headDim)\b/i;

/** The asm statements that touch memory or wait for threads, but lack volatile or a "memory" clobber. nvcc happens to
 * keep their order, so no test of the compiled code would notice. */
const unorderedAsm = (text) =>
  [...text.matchAll(/\basm\b(\s+volatile)?\s*\(\s*"([^\s";]+)[\s\S]*?\);/g)].flatMap(([whole, volatile, name]) => {
    const memory = /^(cp|ldmatrix|stmatrix|bar|barrier|mbarrier|membar|fence|atom|red|st|ld)\b(?!\.global\.nc)/.test(
      name,
    );
    const clobbers = /:\s*"memory"\s*\);$/.test(whole);
    return (memory || /\.sync\b/.test(name)) && (!volatile || (memory && !clobbers)) ? [name] : [];
  });

/** The modules of lib/ that the text loads when it runs. Type imports are erased. */
const libImports = (text) =>
  [...text.matchAll(/^(?:import|export)\b(?! type\b)([^;]*?)from '\.\/([^']+)'/gm)]
    .filter(([, names]) => !/^\s*\{(\s*type [^,]*,?)*\s*\}\s*$/.test(names))
    .map(([, , name]) => `lib/${name}.ts`);

/** The way from this file of lib/ back to itself. */
function circle(text, path) {
  const chains = libImports(text).map((module) => [path, module]);
  const seen = new Set();
  for (const chain of chains) {
    const last = chain.at(-1);
    if (last === path) return [chain.join(' -> ')];
    if (!seen.has(last)) chains.push(...libImports(files.get(last) ?? '').map((module) => [...chain, module]));
    seen.add(last);
  }
  return [];
}

// Name, files, what is wrong (a pattern or predicate of a line, or `{ text }`: problems of a whole file), samples.
// biome-ignore format: a table, one rule after the other.
const RULES = [
  ['only csrc/addon includes napi.h', /^(csrc\/(?!addon\/)|cuda\/)/, include('napi|node_api|js_native_api'),
    [['csrc/model/model.cc', '#include <napi.h>'], ['cuda/rope.cu', '#include "napi.h"']]],
  ['cuda knows csrc/backend only', /^cuda\//, include('(\\.\\./)*(csrc/)?(model|addon|backend/cpu)/'),
    [['cuda/rope.cu', '#include "model/config.h"'], ['cuda/rope.cu', '#include "backend/cpu/simd.h"']]],
  ['csrc compiles without CUDA', /^csrc\//, include('cuda|cublas|cooperative_groups|nv|\\.\\./.*cuda/'),
    [['csrc/backend/backend.cc', '#include <cuda_runtime.h>']]],
  ['csrc/backend knows neither model nor addon', /^csrc\/backend\//, include('(model|addon)/'),
    [['csrc/backend/backend.cc', '#include "model/model.h"']]],
  ['csrc/model knows csrc/backend only, not its devices', /^csrc\/model\//, include('(addon|backend/cpu)/'),
    [['csrc/model/forward.cc', '#include "backend/cpu/kernels.h"']]],
  ['csrc/addon knows no device', /^csrc\/addon\//, include('backend/cpu/'),
    [['csrc/addon/device.cc', '#include "backend/cpu/simd.h"']]],
  ['TypeScript imports: cli -> bench, server -> lib/index', /^(lib|cli|bench|server)\/.*\.ts$/, breaksArrow,
    [['lib/model.ts', "import { bar } from '../cli/progress';"], ['cli/x.ts', "import { a } from '../lib/addon';"],
      ['lib/model.ts', "await import('../bench/main');"], ['bench/suites/cpu.ts', "import { m } from '../../cli/main';"]]],
  ['lib has no import circle', /^lib\/.*\.ts$/, { text: circle },
    [['lib/errors.ts', "import { Session } from './session';"], ['lib/addon.ts', "export { Model } from './model';"],
      ['lib/addon.ts', "import {\n  type Device,\n  openDevice,\n} from './device';"]]],
  ['lib exports nothing reassignable', /^lib\/.*\.ts$/, /^\s*export (declare )?(let|var)\b/,
    [['lib/session.ts', 'export let nativeSession: NativeSession;']]],
  ['inline PTX only in cuda/device', /^cuda\/(?!device\/)/, /\b(asm|__asm__|__asm)\b\s*(volatile|\()/,
    [['cuda/rope.cu', '  asm volatile("cp.async.commit_group;\\n" ::);'], ['cuda/kernels.h', '  asm("nop");']]],
  ['the product does not know the emulation', /^(csrc|cuda|lib|cli)\//, /emulat(ed|ion)|^\s*#\s*(el)?if.*__CUDACC__/i,
    [['cuda/rope.cu', '#if defined(DIFFQKV_EMULATION)'], ['cuda/device/base.h', '#if !defined(__CUDACC__)'],
      ['lib/device.ts', "if (kind === 'emulated') return;"]]],
  ['inline PTX that touches memory or waits is volatile, and clobbers memory', /^cuda\/device\//, { text: unorderedAsm },
    [['cuda/device/async.h', 'asm("cp.async.commit_group;" : : : "memory");'],
      ['cuda/device/async.h', 'asm volatile("cp.async.wait_group 0;");'],
      ['cuda/device/mma.h', 'asm volatile("ldmatrix.sync.x4 {%0}, [%1];"\n : "=r"(r) : "r"(at));'],
      ['cuda/device/mma.h', 'asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(word));'],
      ['cuda/device/memory.h', 'asm volatile("ld.global.u32 %0, [%1];" : "=r"(r) : "l"(p));']]],
  ['K and V have their own head counts', /^(?!test\/tools\/check-boundaries)/, /\b((num_)?kv_heads|kvHeads|numKvHeads)\b/,
    [['csrc/model/forward.cc', 'int64_t num_kv_heads = 4;'], ['lib/kernels.ts', 'const numKvHeads = k.shape[2];']]],
  ['K and V have their own head sizes', new RegExp(`^(?!.*(check-boundaries|${oneHeadSize.source}))`), bareHeadDim,
    [['csrc/backend/cpu/attention/decode.cc', 'const int64_t head_dim = 64;'], ['lib/kernels.ts', 'const headDim = 1;'],
      ['cuda/attention_prefill.cu', 'const int dim = p.head_dim;']]],
];

function problems([, applies, wrong], path, text) {
  if (!applies.test(path)) return [];
  if (wrong.text) return wrong.text(text, path).map((what) => `${path}: ${what}`);
  const bad = wrong instanceof RegExp ? (line) => wrong.test(line) : wrong;
  return text.split('\n').flatMap((line, i) => (bad(line, path) ? [`${path}:${i + 1}: ${line.trim()}`] : []));
}

const files = new Map();
for (const folder of ['bench', 'cli', 'csrc', 'cuda', 'lib', 'scripts', 'server', 'test']) {
  for (const name of existsSync(join(root, folder)) ? readdirSync(join(root, folder), { recursive: true }) : []) {
    if (/\.(cc|h|cuh?|ts|m?js|sh)$/.test(name) && !/(^|\/)(fixtures|node_modules|results)\//.test(name))
      files.set(`${folder}/${name}`, readFileSync(join(root, folder, name), 'utf8'));
  }
}
let failed = 0;
for (const rule of RULES) {
  const found = [...files].flatMap(([path, text]) => problems(rule, path, text));
  for (const [path, text] of rule[3]) {
    if (problems(rule, path, text).length === 0) found.push(`the rule does not find its sample ${path}: ${text}`);
  }
  console.log([`${found.length === 0 ? 'ok  ' : 'FAIL'} ${rule[0]}`, ...found].join('\n       '));
  failed += found.length > 0 ? 1 : 0;
}
console.log(`boundaries: ${RULES.length - failed} passed, ${failed} failed (${files.size} files)`);
process.exitCode = failed === 0 ? 0 : 1;
