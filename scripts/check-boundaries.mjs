// The house rules of docs/design.md, as a check. Each rule carries files that break it; every run first proves that the
// rule finds them, so that a rule which can no longer fail fails itself.
//
//   node scripts/check-boundaries.mjs [--json FILE]
import { readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join, posix, relative } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = join(dirname(fileURLToPath(import.meta.url)), '..');
const FOLDERS = ['bench', 'cli', 'csrc', 'cuda', 'docs', 'lib', 'scripts', 'test'];
const OPERATORS =
  'embed rms_norm matmul augmented_q rope kv_append attention_prefill attention_decode silu_mul sample'.split(' ');

const isCpp = (path) => /^(csrc|cuda)\/.*\.(cc|cpp|h|cu|cuh)$/.test(path);
const isTs = (path) => /^(lib|cli|bench|test)\/.*\.ts$/.test(path);
const isCode = (path) => isCpp(path) || isTs(path) || /^scripts\/.*\.(m?js|sh)$/.test(path);
const within = (path, ...folders) => folders.some((folder) => path.startsWith(`${folder}/`));

// Where a head has one size only, and bare head_dim says so: RoPE, code that works on K or V one at a time, the
// translation of Hugging Face's key, and the configs and references that tests and benches make.
const ONE_HEAD_SIZE = [
  /rope|rotary/,
  // K or V alone, whichever: one size
  /quantize|kv_gather|kv_append|attention_cache|attention_problem|lifted_keys/,
  /^csrc\/backend\/(ops\.h|check\.cc|cpu\/attention_(pack|select)\.h)$/,
  /^csrc\/model\/config\.cc$/,
  /^lib\/presets\.ts$/,
  /^cli\/convert_config\.ts$/,
  /^(test|bench)\//,
];

/** What is wrong, line by line, in the files that `applies` picks. */
function byLine(applies, wrong) {
  return (files) => {
    const found = [];
    for (const [path, text] of files) {
      if (!applies(path)) continue;
      text.split('\n').forEach((line, i) => {
        const what = wrong(line, path);
        if (what) found.push(`${path}:${i + 1}: ${what}`);
      });
    }
    return found;
  };
}

/** The header that a line includes, else ''. */
const included = (line) => /^\s*#\s*include\s*[<"]([^>"]+)[>"]/.exec(line)?.[1] ?? '';
const includes = (applies, banned, why) =>
  byLine(applies, (line) => (banned.test(included(line)) ? `includes ${included(line)}: ${why}` : ''));

/** The module that a line imports, relative to the root where it is a relative one, else ''. */
function imported(line, path) {
  const name = /(?:from|import|import\(|require\()\s*['"]([^'"]+)['"]/.exec(line)?.[1] ?? '';
  return name.startsWith('.') ? posix.join(dirname(path), name) : name;
}

/** Import circles between files of lib/. Type imports are erased, so a class and its part may name each other's type. */
function importCircles(files) {
  const graph = new Map();
  for (const [path, text] of files) {
    if (!/^lib\/.*\.ts$/.test(path)) continue;
    const imports = [...text.matchAll(/^(?:import|export)\b(?! type\b)([^;]*?)from '\.\/([^']+)'/gm)]
      .filter(([, names]) => !/^\s*\{(\s*type [^,]*,?)*\s*\}\s*$/.test(names))
      .map(([, , name]) => `lib/${name}.ts`);
    graph.set(path, imports);
  }
  const found = [];
  const visit = (path, chain) => {
    const from = chain.indexOf(path);
    if (from >= 0) found.push([...chain.slice(from), path].join(' -> '));
    else for (const next of graph.get(path) ?? []) visit(next, [...chain, path]);
    if (from < 0) graph.delete(path); // every circle through it is found
  };
  for (const path of [...graph.keys()]) visit(path, []);
  return found;
}

/** The asm statements of a file that the compiler may move past accesses of memory, or into a branch, and must not. */
function orderedStatements(path, text) {
  return [...text.matchAll(/\basm\b(\s+volatile)?\s*\(\s*"([^\s";]+)[\s\S]*?\);/g)].flatMap(
    ([whole, volatile, name]) => {
      const touchesMemory =
        /^(cp|ldmatrix|stmatrix|bar|barrier|mbarrier|membar|fence|atom|red|st|ld)\b/.test(name) &&
        !name.startsWith('ld.global.nc'); // of memory that nobody writes
      if (!touchesMemory && !/\.sync\b/.test(name)) return [];
      const lacks = [
        !volatile && 'volatile',
        touchesMemory && !/:\s*"memory"\s*\);$/.test(whole) && 'a "memory" clobber',
      ];
      const line = text.slice(0, text.indexOf(whole)).split('\n').length;
      return lacks.filter(Boolean).map((what) => `${path}:${line}: ${name} without ${what}`);
    },
  );
}

const LIMITS = [
  // Files may grow a little beyond 400, 250, 150 and 150 lines, but not beyond these.
  [/^(csrc\/backend|csrc\/model|cuda)\//, 450],
  [/^csrc\/addon\//, 290],
  [/^README\.md$/, 150],
];

const RULES = [
  {
    name: 'napi.h only in csrc/addon',
    check: includes(
      (p) => isCpp(p) && !within(p, 'csrc/addon'),
      /^(napi|node_api|js_native_api)/,
      'only csrc/addon may',
    ),
    breaks: [
      ['csrc/model/model.cc', '#include <napi.h>'],
      ['cuda/rope.cu', '#include "napi.h"'],
    ],
  },
  {
    name: 'cuda/ knows csrc/backend alone',
    check: includes(
      (p) => isCpp(p) && within(p, 'cuda'),
      /^(\.\.\/)*(csrc\/)?(model|addon|backend\/cpu)\//,
      'cuda/ knows csrc/backend alone',
    ),
    breaks: [['cuda/rope.cu', '#include "model/config.h"']],
  },
  {
    name: 'csrc/ compiles without CUDA',
    check: includes(
      (p) => isCpp(p) && within(p, 'csrc'),
      /^(cuda|cublas|cooperative_groups|nv|\.\.\/.*cuda\/)/,
      'csrc/ compiles without a CUDA toolkit',
    ),
    breaks: [['csrc/backend/backend.cc', '#include <cuda_runtime.h>']],
  },
  {
    name: 'csrc arrows: addon -> model -> backend',
    check: (files) => [
      ...includes(
        (p) => isCpp(p) && within(p, 'csrc/backend'),
        /^(model|addon)\//,
        'csrc/backend knows neither model nor addon',
      )(files),
      ...includes(
        (p) => isCpp(p) && within(p, 'csrc/model'),
        /^(addon|backend\/cpu)\//,
        'csrc/model knows backend.h and ops.h alone',
      )(files),
      ...includes(
        (p) => isCpp(p) && within(p, 'csrc/addon'),
        /^backend\/cpu\//,
        'csrc/addon knows the CPU device as any other',
      )(files),
    ],
    breaks: [
      ['csrc/backend/backend.cc', '#include "model/model.h"'],
      ['csrc/model/forward.cc', '#include "backend/cpu/kernels.h"'],
      ['csrc/addon/device.cc', '#include "backend/cpu/simd.h"'],
    ],
  },
  {
    name: 'TypeScript arrows: cli -> bench -> lib',
    check: byLine(isTs, (line, path) => {
      const target = imported(line, path);
      const folder = path.split('/')[0];
      const to = target.split('/')[0];
      if (!['lib', 'cli', 'bench', 'test'].includes(to) || to === folder) return '';
      const allowed = { lib: [], bench: ['lib'], cli: ['bench', 'lib'], test: ['bench', 'cli', 'lib'] }[folder];
      if (!allowed.includes(to)) return `imports ${target}: ${folder}/ may not use ${to}/`;
      // The native module measures the limits of the CPU, which only bench/ needs.
      const isPublic = /^lib(\/index)?$/.test(target) || (folder === 'bench' && target === 'lib/ceilings');
      return folder !== 'test' && to === 'lib' && !isPublic ? `imports ${target}: only lib/index is public` : '';
    }),
    breaks: [
      ['lib/model.ts', "import { bar } from '../cli/progress';"],
      ['lib/model.ts', "const { run } = await import('../bench/main');"],
      ['bench/cpu.ts', "import { loadAddon } from '../lib/addon';"],
      ['bench/suites/cpu.ts', "import { main } from '../../cli/main';"],
    ],
  },
  {
    name: 'lib/ has no import circle',
    check: importCircles,
    breaks: [
      ['lib/errors.ts', "import { addon } from './addon';"],
      ['lib/tensor.ts', "import {\n  type Device,\n  openDevice,\n} from './device';"],
      ['lib/session.ts', "export { Model } from './model';"],
    ].map(([path, line]) => [path, line, (files) => new Map(files).set(path, `${line}\n${files.get(path)}`)]),
  },
  {
    name: 'lib/ exports no variable that can be reassigned',
    check: byLine(
      (p) => isTs(p) && within(p, 'lib'),
      (line) =>
        /^\s*export (declare )?(let|var)\b/.test(line) ? 'use const, and lib/internal.ts for native objects' : '',
    ),
    breaks: [['lib/session.ts', 'export let nativeSession: (session: Session) => NativeSession;']],
  },
  {
    name: 'lib/addon.ts alone finds the module',
    check: byLine(
      (p) => isTs(p) && within(p, 'lib', 'cli', 'bench') && p !== 'lib/addon.ts',
      (line) =>
        /node-gyp-build|\.node['"]/.test(line) ? 'loads the native module, which is the work of lib/addon.ts' : '',
    ),
    breaks: [['lib/device.ts', "import load from 'node-gyp-build';"]],
  },
  {
    name: 'inline assembly of cuda/ only in cuda/device, and where the emulation switches stacks',
    check: byLine(
      (p) => isCpp(p) && within(p, 'cuda') && !within(p, 'cuda/device') && p !== 'cuda/emulation/fiber.cc',
      (line) => (/\b(asm|__asm__|__asm)\b\s*(volatile|\()/.test(line) ? 'inline PTX belongs to cuda/device' : ''),
    ),
    breaks: [
      ['cuda/attention_decode.cu', '  asm volatile("cp.async.commit_group;\\n" ::);'],
      ['cuda/emulation/engine.cc', '  asm("nop");'],
    ],
  },
  {
    // nvcc keeps the order that the source has even where it need not, so no test of the compiled code would notice.
    name: 'inline PTX that touches memory or waits for other threads is volatile, and clobbers memory',
    check: (files) =>
      [...files].flatMap(([path, text]) => (within(path, 'cuda/device') ? orderedStatements(path, text) : [])),
    breaks: [
      ['cuda/device/async.h', 'asm("cp.async.commit_group;" : : : "memory");'],
      [
        'cuda/device/async.h',
        'asm volatile("cp.async.commit_group;" : : : "memory");\nasm volatile("cp.async.wait_group 0;");',
      ],
      ['cuda/device/base.h', 'asm volatile("bar.sync %0, %1;" : : "r"(barrier), "r"(threads));'],
      [
        'cuda/device/mma.h',
        'asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0}, [%1];"\n : "=r"(r) : "r"(at));',
      ],
      ['cuda/device/mma.h', 'asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(word));'],
      ['cuda/device/memory.h', 'asm volatile("ld.global.u32 %0, [%1];" : "=r"(r) : "l"(p));'],
    ],
  },
  {
    name: 'kernels use the device layer alone, which the emulation has too',
    check: byLine(
      (p) => isCpp(p) && within(p, 'cuda') && !within(p, 'cuda/device', 'cuda/emulation'),
      (line) => {
        const code = line.replace(/\/\/.*/, '');
        const word =
          /\b(threadIdx|blockIdx|blockDim|gridDim|__shared__|__global__|__device__|__sync\w+|__shfl\w+|__ldg|__threadfence\w*|atomic(Add|Max|Min|CAS|Exch|Inc))\b|<<</.exec(
            code,
          );
        if (word) return `${word[0]}: cuda/device has what kernels may use`;
        return /^emulation\//.test(included(line)) ? 'only cuda/device knows the emulation' : '';
      },
    ),
    breaks: [
      ['cuda/rope.cu', '  const int i = threadIdx.x;'],
      ['cuda/rope.cu', '  __syncthreads();'],
      ['cuda/rope.cu', '  rope_kernel<<<1, 32>>>(p);'],
      ['cuda/rope.cu', '#include "emulation/engine.h"'],
    ],
  },
  {
    name: 'words: no kv_heads, no bare head_dim',
    check: byLine(
      (p) => isCode(p) && p !== 'scripts/check-boundaries.mjs',
      (line, path) => {
        const word = /\b(num_)?kv_heads\b|\b(kvHeads|numKvHeads)\b/.exec(line);
        if (word) return `${word[0]}: K and V have their own head counts`;
        const bare = /\bhead_dim\b|\bheadDim\b/.exec(line);
        const oneSize =
          ONE_HEAD_SIZE.some((pattern) => pattern.test(path)) ||
          /rope|rotary|positions|inv_freq|p\.head_dim = config_/i.test(line);
        return bare && !oneSize ? `${bare[0]}: head_dim_qk or head_dim_vo` : '';
      },
    ),
    breaks: [
      ['csrc/model/forward.cc', 'int64_t num_kv_heads = 4;'],
      ['csrc/backend/cpu/attention_decode.cc', 'const int64_t head_dim = p.head_dim_qk;'],
      ['lib/kernels.ts', 'const numKvHeads = k.shape[2];'],
      ['lib/kernels.ts', 'const headDim = q.shape[3];'],
    ],
  },
  {
    name: "Hugging Face's head counts are translated in csrc/model/config.cc",
    check: byLine(
      (p) => isCpp(p) && !/^csrc\/model\/config/.test(p),
      (line) => {
        const word = /"(num_attention_heads|num_key_heads|num_value_heads|num_key_value_heads|aug_q_dim)"/.exec(line);
        return word ? `${word[1]} is read in csrc/model/config.cc alone` : '';
      },
    ),
    breaks: [['csrc/model/weights.cc', 'json.at("num_key_value_heads")']],
  },
  {
    name: 'every method of Backend is pure virtual',
    check: (files) => {
      const text = files.get('csrc/backend/backend.h') ?? '';
      const body = /class Backend \{([\s\S]*?)\n\};/.exec(text)?.[1];
      if (body === undefined) return ['csrc/backend/backend.h: class Backend not found'];
      const methods = [...body.matchAll(/^ *virtual ([^;]*);/gm)].map((match) => match[1]);
      return methods
        .filter((method) => !method.startsWith('~') && !/= 0$/.test(method))
        .map((method) => `csrc/backend/backend.h: ${method}: not pure, so that a device could lack it unseen`);
    },
    breaks: [['csrc/backend/backend.h', 'class Backend {\n  virtual void rope(const RopeParams& p);\n};']],
  },
  {
    name: 'an operator has one stem: its CPU file, its CUDA file, its Params in ops.h, its test',
    check: (files) =>
      OPERATORS.flatMap((stem) => {
        const params = `${stem.replace(/(^|_)(.)/g, (_, __, letter) => letter.toUpperCase())}Params`;
        const missing = [];
        if (!files.has(`csrc/backend/cpu/${stem}.cc`)) missing.push(`csrc/backend/cpu/${stem}.cc is missing`);
        if (!files.has(`cuda/${stem}.cu`)) missing.push(`cuda/${stem}.cu is missing`);
        if (!files.has(`test/${stem}.test.ts`)) missing.push(`test/${stem}.test.ts is missing`);
        if (!files.get('csrc/backend/ops.h')?.includes(`struct ${params} `))
          missing.push(`csrc/backend/ops.h: ${params} is missing`);
        return missing;
      }),
    // Breaches are all the files less one: there the rule finds something for that one's sake alone.
    breaks: ['csrc/backend/cpu/rope.cc', 'cuda/rope.cu', 'csrc/backend/ops.h', 'test/rope.test.ts'].map((gone) => [
      gone,
      'is missing',
      (files) => new Map([...files].filter(([path]) => path !== gone)),
    ]),
  },
  {
    name: 'nothing ends the process',
    check: byLine(
      (p) => isCpp(p) && !within(p, 'cuda/emulation'),
      (line) =>
        /\bstd::(abort|exit|quick_exit|terminate)\s*\(|^\s*(abort|exit|_exit)\s*\(/.test(line)
          ? 'errors are thrown'
          : '',
    ),
    breaks: [['csrc/model/model.cc', '  std::abort();']],
  },
  {
    name: 'nothing is left to do',
    check: byLine(
      (p) => isCode(p) || /^(docs\/.*|[A-Z]+)\.md$/.test(p),
      (line, path) =>
        path !== 'scripts/check-boundaries.mjs' && /\b(TODO|FIXME|XXX)\b|\b(it|test|describe)\.only\b/.test(line)
          ? line.trim()
          : '',
    ),
    breaks: [
      ['lib/model.ts', '// TODO: more'],
      ['test/model.test.ts', "it.only('loads', () => {});"],
    ],
  },
  {
    name: 'files that can be held in mind',
    check: (files) =>
      [...files].flatMap(([path, text]) => {
        const limit = LIMITS.find(([pattern]) => pattern.test(path))?.[1];
        const lines = text.split('\n').length - 1;
        return limit && lines > limit ? [`${path}: ${lines} lines, more than ${limit}`] : [];
      }),
    breaks: [['csrc/backend/cpu/rope.cc', '\n'.repeat(451)]],
  },
  {
    name: 'the lock file names no registry',
    check: byLine(
      (p) => p === 'package-lock.json',
      (line) => (/^\s*"resolved": "http/.test(line) ? line.trim() : ''),
    ),
    breaks: [['package-lock.json', '      "resolved": "https://registry.example/a.tgz",']],
  },
];

function walk(folder, files) {
  for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) {
      if (path !== 'bench/results' && path !== 'test/fixtures' && entry.name !== 'node_modules') walk(path, files);
    } else if (/\.(ts|m?js|cc|cpp|h|cu|cuh|md|sh)$/.test(entry.name)) {
      files.set(path, readFileSync(join(root, path), 'utf8'));
    }
  }
  return files;
}

const files = new Map();
for (const folder of FOLDERS) walk(folder, files);
for (const name of readdirSync(root)) {
  const path = join(root, name);
  if (/\.(md|json|js)$/.test(name) && statSync(path).isFile())
    files.set(relative(root, path), readFileSync(path, 'utf8'));
}

const results = RULES.map(({ name, check, breaks }) => {
  // A breach is a file by itself, or a change of all the files, which must then be why the rule finds something.
  const before = check(files).length;
  const blind = breaks.filter(([path, text, change]) =>
    change ? check(change(files)).length <= before : check(new Map([[path, text]])).length === 0,
  );
  if (blind.length > 0)
    return { name, found: blind.map(([path, text]) => `the rule no longer finds ${path}: ${text.trim()}`) };
  return { name, found: check(files) };
});
for (const { name, found } of results) {
  console.log(`${found.length === 0 ? 'ok  ' : 'FAIL'} ${name}`);
  for (const line of found) console.log(`       ${line}`);
}
const failed = results.filter(({ found }) => found.length > 0).length;
console.log(`boundaries: ${results.length - failed} passed, ${failed} failed (${files.size} files)`);
const jsonAt = process.argv.indexOf('--json');
if (jsonAt > 0) writeFileSync(process.argv[jsonAt + 1], JSON.stringify({ passed: results.length - failed, failed }));
process.exitCode = failed === 0 ? 0 : 1;
