// For test/tools/test-mutants.mjs: the tests of each source file, and what is not mutated.

import { readdirSync } from 'node:fs';
import { join, parse } from 'node:path';

import { root } from './run.mjs';
import { operators } from './suites.mjs';

/** Files that are not mutated, because the module of the tests does not run them. */
export const excluded = [
  { files: /^cuda\/device\//, why: 'PTX; the emulation has its own device/' },
  { files: /\/(onednn\.(cc|h))$/, why: 'this build has no oneDNN' },
  { files: /^csrc\/backend\/cpu\/amx_instructions\.h$/, why: 'needs AMX; the emulation has its own' },
  { files: /^csrc\/backend\/(cpu_ceilings\.h|cpu\/ceilings\/)|^csrc\/addon\/ceilings\.cc$/, why: 'measures speed' },
];

/**
 * What is not mutated, because it cannot change a result, only time. `text` is part of the line, of any
 * file if none is named. `whole`: that line and those up to the brace that closes it. `to`: only mutants
 * with this text, '' for a deletion.
 */
export const harmless = [
  // Both ways to the top k give the same candidates.
  { file: 'csrc/backend/cpu/sampling/sample.cc', text: 'if (top_k <= 4096)' },
  // How many candidates are sorted at once.
  { file: 'csrc/backend/cpu/sampling/sample.cc', text: 'std::max<size_t>(64, sorted * 4)' },
  // How many squares are summed in float32 before float64.
  { file: 'csrc/backend/cpu/rowwise/rms_norm.cc', text: 'constexpr int64_t kBlock = 64 * kLanes' },
  // Prefetches change nothing but the caches.
  { text: '__builtin_prefetch(' },
  { text: 'prefetch.advance(' },
  { file: 'csrc/backend/cpu/attention/tile.h', text: 'Prefetch prefetch_block(', whole: true },
  { file: 'csrc/backend/cpu/linear/packed.h', text: 'for (int64_t line = 0; line < P::kBytes; line += 64' },
  { file: 'csrc/backend/cpu/linear/gemv.cc', text: 'for (int64_t line = 0; line < 2 * groups; line += 64)' },
  // How many tokens or elements a thread computes, each by itself, and whether there is a second thread.
  { text: 'parallel_ranges(p.' },
  { text: 'parallel_ranges(count, 64, count, ' },
  { text: 'parallel_ranges(num_x, 1, ' },
  { text: 'parallel_ranges(num_rows, 1, ' },
  { text: 'parallel_ranges(n, 1, ' },
  // How many sums are in registers at once. Each sum has its own order of terms, along k.
  { file: 'csrc/backend/cpu/attention/gemm.h', text: 'constexpr int kMaxAccumulators = ' },
  // The pass that follows finds no sequence with as few keys as it computes.
  { file: 'csrc/backend/cpu/attention/decode.cc', text: 'if (shortest > k) return;', to: '' },
  // Rows that are further apart.
  { file: 'csrc/backend/cpu/attention/tile.h', text: 'r.ldo = round_up(r.divisor_column + 1, kPanel)', to: '2' },
  // check_shapes() sets both.
  { file: 'csrc/model/packed_weights.h', text: 'int64_t rows_ = 0, columns_ = 0;' },
  // How many threads and loads share the work.
  { text: 'context.num_multiprocessors' },
  { file: 'cuda/gemv.cu', text: 'const auto has_columns_for = ', whole: true },
  { file: 'cuda/sample.cu', text: 'constexpr int kMaxThreads = 512, kParts = 32;' },
  { file: 'cuda/sample.cu', text: 'constexpr int kBatch = 4;' },
  { file: 'cuda/sample.cu', text: 'constexpr uint32_t kMaxBlockPieces = 512;' },
  { file: 'cuda/sample.cu', text: 'constexpr uint32_t kCutWidth = 1u << 14;' },
  { file: 'cuda/kv_append.cu', text: 'constexpr int kThreads = 256' },
  { file: 'cuda/rms_norm.cu', text: 'constexpr int kThreads = 256' },
];

/** Whether a mutant of the file with these lines is harmless. */
export function harmlessIn(file, lines) {
  const found = [];
  for (const [first, line] of lines.entries()) {
    for (const { text, whole, to, file: only = file } of harmless) {
      if (only !== file || !line.includes(text)) continue;
      const end = `${/^ */.exec(line)[0]}}`;
      const last = whole ? lines.findIndex((other, at) => at > first && other.startsWith(end)) : first;
      found.push({ first, last, to });
    }
  }
  return (mutant) =>
    found.some(({ first, last, to = mutant.to }) => {
      return mutant.line > first && mutant.line <= last + 1 && mutant.to === to;
    });
}

const run =
  (device) =>
  (suites, env = {}) => ({ suites, env: { DIFFQKV_TEST_DEVICES: device, ...env } });
const cpu = run('cpu');
const emulated = run('emulated');
/** The CPU with other instructions, and the oldest with more threads. */
const baseline = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'baseline', OMP_NUM_THREADS: '3' });
const avx2 = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'avx2' });
const avx512 = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'avx512' });
const amx = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'emulated_amx' });
const everyIsa = (suites) => [cpu(suites), amx(suites), baseline(suites), avx2(suites), avx512(suites)];

// Quick tests are first.
const prefill = ['softcap', 'latent', 'attention_prefill'];
const attention = [...prefill, 'attention_decode', 'kv_types', 'large_scores', 'attention_window'];
const rowwiseOperators = readdirSync(join(root, 'csrc/backend/cpu/rowwise'))
  .map((file) => parse(file).name)
  .filter((name) => operators.includes(name));
const rowwise = [...rowwiseOperators, 'kv_append', 'tensor', 'fixtures'];
const kvCache = ['quantize', 'kv_append', 'latent', 'kv_cache', 'kv_types'];
const linear = ['augmented_q', 'quantize', 'matmul', 'quantized_weights', 'threads', 'fixtures'];
const models = [
  ...['latent', 'fixtures', 'abort', 'errors_models', 'batching', 'verified_steps', 'generate', 'score', 'embeddings'],
  ...['kv_cache', 'session_order', 'checkpoint_errors', 'key_and_value_sizes', 'device_choice'],
  ...['quantized_models', 'changed_files', 'logit_bias', 'saved_sessions'],
];
const loading = ['architecture_configs', 'architectures', 'packed_checkpoints', 'tensor_names', 'folder_messages'];
const contexts = ['longrope', 'dynamic_rope', 'window_pages'];
const wrongCalls = ['errors_kernels', 'errors_devices', 'receivers', ...rowwise, ...linear, 'attention_prefill'];
/** Races, waits, traffic and bank conflicts of the kernels. */
const emulation = [emulated(['counters'], { DIFFQKV_TEST_REDUCED: '' }), emulated(['emulation'])];

// The first pattern that matches decides.
const table = [
  [/cpu\/attention\/amx|cpu\/amx/, [amx(attention)]],
  [/cpu\/attention\/top_k/, [cpu(['attention_decode', 'kv_types']), baseline(['attention_decode'])]],
  [
    /cpu\/attention\//,
    [cpu(attention), baseline(attention), amx(attention), avx2(['attention_prefill', 'attention_decode', 'kv_types'])],
  ],
  [/cpu\/kv_cache\//, [cpu(kvCache), baseline(kvCache), avx2(kvCache), avx512(['quantize'])]],
  [/cpu\/linear\/quantize_weight/, [...everyIsa(['quantized_weights']), emulated(['quantized_weights'])]],
  [/cpu\/linear\//, everyIsa(linear)],
  [/cpu\/rowwise\/convert/, [cpu(['threads', ...linear]), avx2(linear)]],
  [/cpu\/rowwise\//, [cpu([...rowwise, 'threads']), baseline(rowwise), avx2(rowwise)]],
  [/cpu\/sampling\//, [cpu(['sample', 'logit_bias', 'log_probs', 'generate']), baseline(['sample', 'log_probs'])]],
  [/cpu\/system\//, [cpu(['control_group', 'device_choice', 'threads', 'fixtures', 'behavior'])]],
  [/backend\/cpu\//, everyIsa([...rowwise, ...linear, 'sample', ...attention, 'threads'])],
  [/csrc\/backend\/dtype/, [cpu(['quantize', 'errors_kernels', 'tensor', 'kv_types', ...models, ...loading])]],
  [
    /csrc\/(addon\/kernels|backend\/(check|ops))/,
    [cpu(['errors_kernels', ...rowwise, ...linear, 'sample', ...attention])],
  ],
  [/csrc\/backend\//, [cpu([...wrongCalls, 'threads', ...models])]],
  [/csrc\/model\/architectures/, [cpu(['architectures', 'architecture_configs', 'checkpoint_errors'])]],
  [/csrc\/model\/(packed_weights|quantization)/, [cpu(['packed_checkpoints', 'quantized_models', ...loading])]],
  [/csrc\/model\/(config|rope_config|json)/, [cpu(['architecture_configs', ...contexts, ...loading, ...models])]],
  [
    /csrc\/model\/(checkpoint|loader|weights)/,
    [cpu(['checkpoint_errors', ...loading, ...models, 'checkpoint_shapes'])],
  ],
  [/csrc\/model\//, [cpu([...models, ...contexts, ...loading, 'checkpoint_shapes'])]],
  [/csrc\/addon\/(resource|executor|tensor)/, [cpu([...wrongCalls, 'threads', ...models, 'behavior'])]],
  [/csrc\/addon\//, [cpu([...wrongCalls, 'sample', 'logit_bias', 'threads', ...models, ...contexts])]],
  [/cuda\/attention_selective/, [emulated(['attention_decode', 'kv_types', 'latent']), ...emulation]],
  [/cuda\/attention_prefill/, [emulated([...prefill, 'large_scores', 'kv_types', 'attention_window']), ...emulation]],
  [/cuda\/(attention|softmax)/, [emulated(attention), ...emulation]],
  [/cuda\/kv_/, [emulated(kvCache), ...emulation]],
  [/cuda\/quantize/, [emulated(['quantize', 'quantized_weights', 'kv_types']), ...emulation]],
  [/cuda\/(sample|log_probs)/, [emulated(['sample', 'logit_bias', 'log_probs']), ...emulation]],
  [RegExp(`cuda/(${rowwiseOperators.join('|')}|activation)`), [emulated(rowwise), ...emulation]],
  [/cuda\/(rotary)/, [emulated(['rope', 'kv_append', 'kv_types']), ...emulation]],
  [/cuda\/(gem[mv]|matmul|gated_mlp|linear|packed_weights)/, [emulated(linear), ...emulation]],
  [
    /cuda\/cuda_/,
    [
      emulated(['errors_kernels', 'tensor', 'gpu_shapes', 'emulated_device', 'kv_cache', 'device_lost', 'fixtures']),
      ...emulation,
    ],
  ],
  [/^cuda\//, [emulated([...rowwise, ...linear, ...attention, 'sample', 'kv_append']), ...emulation]],
];

/** The runs of test files for a source file, each with its environment. */
export function runsFor(file) {
  const runs = table.find(([files]) => files.test(file))[1];
  return runs.map(({ suites, env }) => ({ suites: [...new Set(suites)], env }));
}
