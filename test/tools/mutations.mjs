// The mutations of the CUDA sources for test/tools/test-mutations.mjs. `edits`: texts that occur once
// in a file, and their replacements. `check`: the check that must fail. `finds`: the name and the
// message of the failing check.

const decode = 'cuda/attention_decode.cu';
const operators = { kind: 'emulation_check', part: 'operators' };
const ptx = (source, only) => ({ kind: 'ptx', source, only });
const wrapper = (name) => ptx('test/ptx/wrappers.cu', `device layer: ${name}`);
const lint = { kind: 'lint' };

const edit = (file, from, to) => [{ file, from, to }];

export const mutations = [
  {
    name: 'mma: the two words of B swapped',
    edits: edit(
      'cuda/device/mma.h',
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "`,
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%9, %8}, "`,
    ),
    check: wrapper('mma bf16'),
    finds: /^device layer: mma bf16/,
  },
  {
    name: 'mma: two words of A swapped, in a kernel',
    edits: edit(
      'cuda/device/mma.h',
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "`,
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %6, %5, %7}, {%8, %9}, "`,
    ),
    check: ptx('cuda/gemm.cu', 'GEMM, large tiles'),
    finds: /^GEMM, large tiles/,
  },
  {
    name: 'ldmatrix: without its "memory" clobber',
    edits: edit(
      'cuda/device/mma.h',
      `: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans`,
      `: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at));
}
__device__ __forceinline__ void ldmatrix_x4_trans`,
    ),
    check: lint,
    finds: /^ +cuda\/device\/mma\.h: ldmatrix/,
  },
  {
    name: 'movmatrix: not volatile',
    edits: edit('cuda/device/mma.h', 'asm volatile("movmatrix', 'asm("movmatrix'),
    check: lint,
    finds: /^ +cuda\/device\/mma\.h: movmatrix/,
  },
  {
    name: 'cp.async: 8 bytes for 16',
    edits: edit(
      'cuda/device/async.h',
      'cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;',
      'cp.async.ca.shared.global.L2::256B [%0], [%1], 8, %2;',
    ),
    check: wrapper('cp.async'),
    finds: /^device layer: cp.async/,
  },
  {
    name: 'decode attention: no fence before the atomic that counts blocks',
    edits: edit(decode, '    __threadfence();\n    const uint32_t before', '    const uint32_t before'),
    check: operators,
    finds: /seeds: decode attention 32\/4\/16 x 64: .*no chain of fence/,
  },
  {
    name: 'decode attention: no fence after the atomic that counts blocks',
    edits: edit(decode, 'plan.arrived + unit.index, 1u);\n    __threadfence();\n', 'plan.arrived + unit.index, 1u);\n'),
    check: operators,
    finds: /seeds: decode attention 32\/4\/16 x 64: .*no chain of fence/,
  },
  {
    name: 'decode attention: the fence before the barrier instead of after it',
    edits: edit(
      decode,
      `  __syncthreads();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(queries);
  if (threadIdx.x == 0) {
    __threadfence();
`,
      `  __threadfence();
  __syncthreads();
  uint32_t* const is_last = reinterpret_cast<uint32_t*>(queries);
  if (threadIdx.x == 0) {
`,
    ),
    check: operators,
    finds: /seeds: decode attention 32\/4\/16 x 64: .*no chain of fence/,
  },
  {
    name: "launch: a kernel's shared memory limit set to the size of one launch",
    edits: edit(
      'cuda/launch.h',
      '    allow_all_shared_memory(reinterpret_cast<const void*>(kernel), name);',
      `    check_cuda(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                    cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)),
               name);`,
    ),
    check: { kind: 'emulation_check', part: 'launches' },
    finds: /a device launches with more shared memory than another allows itself meanwhile/,
  },
  {
    name: 'ld_global_nc: 16 bytes from 8 bytes past an aligned address',
    edits: edit('cuda/device/memory.h', '{%0, %1, %2, %3}, [%4];"', '{%0, %1, %2, %3}, [%4 + 8];"'),
    check: wrapper('ld_global_nc'),
    finds: /^device layer: ld_global_nc, sm_90a.*align/,
  },
  {
    name: 'GEMV: 16-byte loads 8 bytes past an aligned address',
    edits: edit(
      'cuda/gemv.cu',
      'tokens[chunk] = ld_global(reinterpret_cast<const Words4*>(x + at));',
      'tokens[chunk] = ld_global(reinterpret_cast<const Words4*>(x + at + 4));',
    ),
    check: operators,
    finds: /seeds: GEMV: .*not aligned/,
  },
];
