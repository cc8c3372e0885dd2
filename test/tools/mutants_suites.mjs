// For test/tools/test-mutants.mjs: the tests of each source file, and what is not mutated.

/** Files that are not mutated, because the module of the tests does not run them. */
export const excluded = [
  { files: /^cuda\/device\//, why: 'PTX; the emulation has its own device/' },
  { files: /\/(onednn\.(cc|h))$/, why: 'this build has no oneDNN' },
  { files: /^csrc\/backend\/cpu\/amx_instructions\.h$/, why: 'needs AMX; the emulation has its own' },
  { files: /^csrc\/backend\/(cpu_ceilings\.h|cpu\/ceilings\/)|^csrc\/addon\/ceilings\.cc$/, why: 'measures speed' },
];

/**
 * Lines that are not mutated: `text` is part of the line. A change of them cannot change a result, only
 * time.
 */
export const harmless = [
  // Both ways to the top k give the same candidates.
  { file: 'csrc/backend/cpu/sampling/sample.cc', text: 'if (p.top_k <= 4096)' },
  // How many candidates are sorted at once.
  { file: 'csrc/backend/cpu/sampling/sample.cc', text: 'std::max<size_t>(64, sorted * 4)' },
  // How many squares are summed in float32 before float64.
  { file: 'csrc/backend/cpu/rowwise/rms_norm.cc', text: 'constexpr int64_t kBlock = 64 * kLanes' },
  // How many threads and loads share the work.
  { file: 'cuda/sample.cu', text: 'constexpr int kMaxThreads = 1024, kParts = 32;' },
  { file: 'cuda/sample.cu', text: 'constexpr int kBatch = 4;' },
  { file: 'cuda/sample.cu', text: 'const size_t warps = (vocab_size + 8 * kWarpSize - 1)' },
  { file: 'cuda/kv_append.cu', text: 'constexpr int kThreads = 256' },
  { file: 'cuda/rms_norm.cu', text: 'constexpr int kThreads = 256' },
];

const cpu = (suites, env = {}) => ({ suites, env: { DIFFQKV_TEST_DEVICES: 'cpu', ...env } });
const emulated = (suites) => ({ suites, env: { DIFFQKV_TEST_DEVICES: 'emulated' } });

const attention = ['mixed_and_empty', 'attention_prefill', 'attention_decode', 'attention_window', 'kv_types'];
const rowwise = ['gated_activation', 'rope', 'embed', 'rms_norm', 'tensor', 'mixed_and_empty', 'fixtures', 'kv_append'];
const linear = ['matmul', 'augmented_q', 'quantized_weights', 'mixed_and_empty', 'quantize', 'fixtures'];
const models = [
  ...['fixtures', 'errors_models', 'checkpoint_errors', 'key_and_value_sizes', 'batching', 'kv_cache', 'generate'],
  ...['changed_files', 'abort', 'device_choice', 'checkpoint_shapes'],
];
const wrongCalls = ['tensor', 'errors_kernels', 'errors_devices', 'mixed_and_empty'];
/** The CPU with other instructions and more threads. */
const baseline = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'baseline', OMP_NUM_THREADS: '3' });
const amx = (suites) => cpu(suites, { DIFFQKV_CPU_ISA: 'emulated_amx' });

// The first pattern that matches decides. Quick tests are first.
const table = [
  [/cpu\/attention\/amx|cpu\/amx/, [amx(attention)]],
  [/cpu\/attention\/top_k/, [cpu(['attention_decode', 'kv_types']), baseline(['attention_decode'])]],
  [/cpu\/attention\//, [cpu(attention), baseline(attention), amx(attention)]],
  [/cpu\/kv_cache\//, [cpu(['quantize', 'kv_append', 'kv_types', 'kv_cache']), baseline(['quantize', 'kv_append'])]],
  [/cpu\/linear\//, [cpu(linear), baseline(linear)]],
  [/cpu\/rowwise\//, [cpu(rowwise), baseline(rowwise)]],
  [/cpu\/sampling\//, [cpu(['sample', 'generate'])]],
  [/cpu\/system\//, [cpu(['device_choice', 'changed_files', 'fixtures', 'behavior'])]],
  [/backend\/cpu\//, [cpu([...rowwise, ...linear, ...attention, 'sample']), baseline([...rowwise, ...attention])]],
  [/csrc\/backend\/dtype/, [cpu(['tensor', 'quantize', 'errors_kernels', 'kv_types', ...models])]],
  [/csrc\/backend\/(check|ops)/, [cpu(['errors_kernels', ...rowwise, ...linear, 'sample', ...attention])]],
  [/csrc\/backend\//, [cpu([...wrongCalls, 'device_choice', ...models])]],
  [/csrc\/model\/architectures/, [cpu(['architecture_configs', 'architectures', 'checkpoint_errors'])]],
  [
    /csrc\/model\/(forward|weights|config|rope|lifted|session|kv_)/,
    [cpu(['architecture_configs', 'architectures', 'longrope', 'dynamic_rope', 'window_pages', ...models])],
  ],
  [/csrc\/model\//, [cpu(models)]],
  [/csrc\/addon\//, [cpu([...wrongCalls, ...models])]],
  [/cuda\/attention_selective/, [emulated(['attention_decode', 'kv_types'])]],
  [/cuda\/attention_prefill/, [emulated(['mixed_and_empty', 'attention_prefill', 'kv_types'])]],
  [/cuda\/(attention|softmax)/, [emulated(attention)]],
  [/cuda\/kv_/, [emulated(['kv_append', 'kv_types', 'kv_cache'])]],
  [/cuda\/quantize/, [emulated(['quantize', 'quantized_weights', 'kv_types'])]],
  [/cuda\/sample/, [emulated(['sample'])]],
  [/cuda\/(rms_norm|embed|rope|gated_activation)/, [emulated(rowwise)]],
  [/cuda\/(rotary)/, [emulated(['rope', 'kv_append', 'kv_types'])]],
  [/cuda\/(gem[mv]|matmul|gated_mlp|linear|packed_weights)/, [emulated(linear)]],
  [/cuda\/cuda_/, [emulated(['emulated_device', 'tensor', 'errors_kernels', 'gpu_shapes', 'device_lost', 'fixtures'])]],
  [/^cuda\//, [emulated([...rowwise, ...linear, ...attention, 'sample', 'kv_append'])]],
];

/** The runs of test files for a source file, each with its environment. */
export const runsFor = (file) => table.find(([files]) => files.test(file))[1];
