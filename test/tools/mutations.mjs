// The mutations of the C++ and CUDA sources for test/tools/test-mutations.mjs. `edits`: texts that occur once
// in a file, and their replacements. `check`: the check that must fail. `finds`: the name and the
// message of the failing check.

const decode = 'cuda/attention_decode.cu';
const emulation = (part, only) => ({ kind: 'emulation_check', part, only });
const operators = emulation('operators', '');
const ptx = (source, only) => ({ kind: 'ptx', source, only });
const wrapper = (name) => ptx('test/ptx/wrappers.cu', `device layer: ${name}`);
const lint = { kind: 'lint' };
const tests = (suite, device, only) => ({ kind: 'tests', suite, device, only });

const edit = (file, from, to) => [{ file, from, to }];

export const mutations = [
  {
    name: 'mma: the two words of B swapped',
    edits: edit(
      'cuda/device/mma.h',
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"`,
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%9, %8}, "
        "{%0, %1, %2, %3};"`,
    ),
    check: wrapper('mma bf16'),
    finds: /^device layer: mma bf16/,
  },
  {
    name: 'mma: two words of A swapped, in a kernel',
    edits: edit(
      'cuda/device/mma.h',
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"`,
      `.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %6, %5, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"`,
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
    check: emulation('launches', ''),
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
      'reinterpret_cast<const Words4*>(x[tile] + 32 * chunk);',
      'reinterpret_cast<const Words4*>(x[tile] + 32 * chunk + 4);',
    ),
    check: operators,
    finds: /seeds: GEMV: .*not aligned/,
  },
  {
    name: 'GEMV: an output beside one with a gate has its activation',
    edits: edit('cuda/gemv.cu', '      if (place.output.has_gate) {', '      if (place.output.out_stride > 0) {'),
    check: emulation('operators', 'as each alone'),
    finds: /as each alone/,
  },
  {
    name: 'GEMV of quantized weights: no barrier of the warp after the wait for copies',
    edits: edit('cuda/gemv_packed.cu', '    __syncwarp();  // the copies', '    // the copies'),
    check: operators,
    finds: /seeds: GEMV, i4: .*nobody wrote/,
  },
  {
    name: 'GEMV of quantized weights: fills a stage that other lanes still read',
    edits: edit('cuda/gemv_packed.cu', '    __syncwarp();  // all lanes are done', '    // all lanes are done'),
    check: operators,
    finds: /seeds: GEMV, i4: /,
  },
  {
    name: 'GEMV: waits for one group of copies less',
    edits: edit('cuda/gemv.cu', 'cp_async_wait_group<kSlots - 1>();', 'cp_async_wait_group<kSlots>();'),
    check: operators,
    finds: /seeds: GEMV: .*has not waited/,
  },
  {
    name: 'GEMV: a unit overwrites the sums of the unit before',
    edits: edit('cuda/gemv.cu', '    sums += next_sums;', '    // sums += next_sums;'),
    check: operators,
    finds: /seeds: GEMV, several units of a block: /,
  },
  {
    name: 'GEMV of quantized weights: waits for one group of copies less',
    edits: edit('cuda/gemv_packed.cu', 'cp_async_wait_group<C::kStages - 1>();', 'cp_async_wait_group<C::kStages>();'),
    check: operators,
    finds: /seeds: GEMV, i4: .*has not waited/,
  },
  {
    name: 'fill_array: writes into an array that is one element too short',
    edits: edit('csrc/addon/convert.cc', 'if (view.length < length) {', 'if (view.length + 1 < length) {'),
    check: tests('tensor', 'cpu', 'shrinks'),
    finds: /shrinks during the call, by a single element too/,
  },
  {
    name: 'sample, CPU: top-p keeps one more token if the mass is reached exactly',
    edits: edit('csrc/backend/cpu/sampling/sample.cc', 'mass < wanted', 'mass <= wanted'),
    check: tests('sample', 'cpu', 'known logits'),
    finds: /top-p stops when the mass is reached exactly/,
  },
  {
    name: 'sample, CPU: min-p drops a token at the border',
    edits: edit('csrc/backend/cpu/sampling/sample.cc', 'c.weight < static_cast', 'c.weight <= static_cast'),
    check: tests('sample', 'cpu', 'known logits'),
    finds: /min-p 1 keeps all that equal the most likely token/,
  },
  {
    name: 'sample, CPU: of equal logits, top-k keeps any',
    edits: edit(
      'csrc/backend/cpu/sampling/sampler.h',
      'return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);',
      'return a.logit > b.logit;',
    ),
    check: tests('sample', 'cpu', 'known logits'),
    finds: /top 4097 of 4,200 equal tokens are the first ones/,
  },
  {
    name: 'log_probs, CPU: of equal logits, the later one comes first',
    edits: edit(
      'csrc/backend/cpu/sampling/log_probs.cc',
      'place > 0 && logits[token] > logits',
      'place > 0 && logits[token] >= logits',
    ),
    check: tests('log_probs', 'cpu', 'equal logits'),
    finds: /equal logits/,
  },
  {
    name: 'log_probs, CUDA: a sum stays as it is when a larger logit comes',
    edits: edit('cuda/log_probs.cu', 'part.sum * expf(part.largest - largest)', 'part.sum'),
    check: tests('log_probs', 'emulated', 'rising logits'),
    finds: /rising logits/,
  },
  {
    name: 'log_probs, CUDA: the next token of a thread is the one that was taken',
    edits: edit('cuda/log_probs.cu', 'if (key < taken)', 'if (key <= taken)'),
    check: tests('log_probs', 'emulated', '31 tokens'),
    finds: /31 tokens/,
  },
  {
    name: 'score: each chunk has the targets of the first',
    edits: edit('csrc/model/batch.cc', 'first.targets.data() + first.consumed', 'first.targets.data()'),
    check: tests('score', 'cpu', 'native model'),
    finds: /are one step of the native model/,
  },
  {
    name: 'score: pages of the prefix cache are skipped',
    edits: edit('csrc/model/session.cc', 'use == Prefixes::skip || ', ''),
    check: tests('score', 'cpu', 'prefix cache'),
    finds: /have all rows, whatever the prefix cache has/,
  },
  {
    name: 'embed: the state has the scale of the logits',
    edits: edit('csrc/model/row_values.cc', ' / model.config().logit_scale', ''),
    check: tests('embeddings', 'cpu', 'scale of the logits'),
    finds: /leaves the scale of the logits out/,
  },
  {
    name: 'sample, CPU: biases come before the repetition penalty',
    edits: edit(
      'csrc/backend/cpu/sampling/sample.cc',
      'penalize(row);\n  add_biases(row);',
      'add_biases(row);\n  penalize(row);',
    ),
    check: tests('logit_bias', 'cpu', 'reference'),
    finds: /temperature 1 with a repetition penalty, biases of the prompt/,
  },
  {
    name: 'sample, CUDA: the first bias of 8 tokens is passed over',
    edits: edit('cuda/sample.cu', 'biases[middle].token) < token', 'biases[middle].token) <= token'),
    check: tests('logit_bias', 'emulated', 'reference'),
    finds: /temperature 2, some biases/,
  },
  {
    name: 'sample, CUDA: the mask is of the next 8 tokens',
    edits: edit(
      'cuda/sample.cu',
      'row.settings.allowed + first / 32), first)',
      'row.settings.allowed + first / 32), first + 8)',
    ),
    check: tests('logit_bias', 'emulated', 'reference'),
    finds: /temperature 2, a mask of every third token/,
  },
  {
    name: 'batch: a step ahead serves an item that has a mask',
    edits: edit('csrc/model/batch.cc', 'item.wants_logits || has_sample_inputs(item)', 'item.wants_logits'),
    check: tests('steps_ahead', 'emulated', 'mask'),
    finds: /is dropped if a mask or biases are asked for/,
  },
  {
    name: 'sample, CUDA: top-p keeps one more token if the mass is reached exactly',
    edits: edit('cuda/sample.cu', '? mass + 1 : mass;', '? mass + 1 : mass + 1;'),
    check: tests('sample', 'emulated', 'known logits'),
    finds: /top-p stops when the mass is reached exactly/,
  },
  {
    name: 'sample, CUDA: min-p drops a token at the border',
    edits: edit('cuda/sample.cu', 'x < s.min_p', 'x <= s.min_p'),
    check: tests('sample', 'emulated', 'known logits'),
    finds: /min-p 1 keeps all that equal the most likely token/,
  },
  {
    name: 'sample, CUDA: of few equal logits, top-k keeps one more',
    edits: edit('cuda/sample.cu', 'ranks[i]) >= kept', 'ranks[i]) > kept'),
    check: tests('sample', 'emulated', 'known logits'),
    finds: /top-k keeps the earlier of equal tokens/,
  },
  {
    name: 'sample, CUDA: of many equal logits, top-k keeps one less',
    edits: edit('cuda/sample.cu', 'i <= border_place', 'i < border_place'),
    check: tests('sample', 'emulated', 'known logits'),
    finds: /top 4097 of 4,200 equal tokens are the first ones/,
  },
  {
    name: 'sample, CUDA: -0 is below 0',
    edits: edit('cuda/sample.cu', 'logit == 0.0f ? 0u : bit_cast<uint32_t>(logit)', 'bit_cast<uint32_t>(logit)'),
    check: tests('sample', 'emulated', 'known logits'),
    finds: /-0 and 0 are equal logits/,
  },
  {
    name: 'rms_norm, CPU: squares beyond float32 are not summed again',
    edits: edit(
      'csrc/backend/cpu/rowwise/rms_norm.cc',
      'if (!(total >= 1e-28 && total <= 1e38)) total =',
      'if (total != total) total =',
    ),
    check: tests('rms_norm', 'cpu', 'leave the range'),
    finds: /leave the range of float32/,
  },
  {
    name: 'rms_norm, CUDA: squares beyond float32 are not summed again',
    edits: edit('cuda/rms_norm.cu', 'if (!(total >= 1e-28 && total <= 1e38)) {', 'if (total != total) {'),
    check: tests('rms_norm', 'emulated', 'leave the range'),
    finds: /leave the range of float32/,
  },
  {
    name: 'rms_norm, CUDA: squares below float32 are not summed again',
    edits: edit('cuda/rms_norm.cu', 'total >= 1e-28 && total', 'total'),
    check: tests('rms_norm', 'emulated', 'leave the range'),
    finds: /leave the range of float32/,
  },
  {
    name: 'decode attention, CPU: the merge of splits drops a split that is NaN',
    edits: edit(
      'csrc/backend/cpu/attention/schedule.h',
      'weight_of(p, part[p.ldo], r.m) : 1;',
      'weight_of(p, part[p.ldo], r.m) : 0;\n    if (weight == 0) continue;',
    ),
    check: tests('attention_decode', 'cpu', 'NaN'),
    finds: /propagates a NaN score to its own heads/,
  },
  {
    name: 'decode attention, CUDA: the merge of splits drops a split that is NaN',
    edits: edit(
      decode,
      'const float other = SoftmaxState::factor(bit_cast<float>(sums[i].w[0]), top, scale_log2);',
      'const float other = SoftmaxState::factor(bit_cast<float>(sums[i].w[0]), top, scale_log2);\n      if (sums[i].w[1] > 0x7f800000u) continue;',
    ),
    check: tests('attention_decode', 'emulated', 'NaN'),
    finds: /propagates a NaN score to its own heads/,
  },
  {
    name: 'selective V, CPU: NaN is the lowest score',
    edits: edit(
      'csrc/backend/cpu/attention/top_k.h',
      'return scores == scores ? ordered : ~U32v{};',
      'return scores == scores ? ordered : U32v{};',
    ),
    check: tests('attention_decode', 'cpu', 'NaN'),
    finds: /propagates a NaN score to its own heads/,
  },
  {
    name: 'selective V, CUDA: NaN is the lowest score',
    edits: [
      ...edit('cuda/attention_selective_top.h', 'x > top || x != x ? x : top', 'x > top ? x : top'),
      ...edit(
        'cuda/attention_selective_top.h',
        'if (score != score) return 0xffffffffu;',
        'if (score != score) return 1u;',
      ),
    ],
    check: tests('attention_decode', 'emulated', 'NaN'),
    finds: /propagates a NaN score to its own heads/,
  },
  {
    name: 'selective V, CPU: -0 is below 0',
    edits: edit('csrc/backend/cpu/attention/top_k.h', '(U32v)(scores + 0.0f)', '(U32v)scores'),
    check: tests('attention_decode', 'cpu', '-0 and 0'),
    finds: /scores of -0 and 0 as equal/,
  },
  {
    name: 'selective V, CUDA: -0 is below 0',
    edits: edit('cuda/attention_selective_top.h', 'bit_cast<uint32_t>(score + 0.0f)', 'bit_cast<uint32_t>(score)'),
    check: tests('attention_decode', 'emulated', '-0 and 0'),
    finds: /scores of -0 and 0 as equal/,
  },
  {
    name: 'kv_append, CUDA: writes at the limit',
    edits: edit('cuda/kv_append.cu', 'position >= limit', 'position > limit'),
    check: emulation('operators', 'kv_append'),
    finds: /kv_append at the limit/,
  },
  {
    name: 'kv_append, CUDA: vectors of V that are not aligned',
    edits: edit('cuda/kv_append.cu', ' && is_aligned<uint32_t, 4>(p.v)', ''),
    check: emulation('operators', 'kv_append'),
    finds: /kv_append, V not aligned/,
  },
];
