// NativeDevice.measureCeiling, for bench/.
#include "addon/device.h"
#include "addon/fields.h"
#include "backend/cpu_ceilings.h"

namespace diffqkv::addon {
namespace {

using Measurement = std::function<std::vector<double>(CpuCeilings&)>;

constexpr int64_t kMaxMatrixSize = 1 << 20;
constexpr int64_t kMaxWeights = 64;
constexpr int64_t kMaxPrefetchBytes = 4096;

CpuCeilings::OutType out_type(const Fields& fields) {
  const DType out = fields.dtype("out");
  if (out == DType::f32) return CpuCeilings::OutType::f32;
  if (out != DType::bf16) fail(ErrorCode::invalid_argument, "out must be 'bf16' or 'f32', not '%s'", dtype_name(out));
  return CpuCeilings::OutType::bf16;
}

CpuCeilings::WeightLayout weight_layout(const Fields& fields) {
  const std::string layout = fields.text("layout");
  if (layout == "packed") return CpuCeilings::WeightLayout::packed;
  if (layout != "plain") {
    fail(ErrorCode::invalid_argument, "layout must be 'packed' or 'plain', not '%s'", layout.c_str());
  }
  return CpuCeilings::WeightLayout::plain;
}

CpuCeilings::Matrix matrix(const Fields& fields) {
  const int64_t m = fields.integer("m", 1, kMaxMatrixSize);
  const int64_t k = fields.integer("k", 1, kMaxMatrixSize);
  const int64_t n = fields.integer("n", 1, kMaxMatrixSize);
  return {m, k, n, out_type(fields)};
}

Measurement matrices_measurement(const Fields& fields) {
  const Napi::Array list = fields.list("matrices");
  std::vector<CpuCeilings::Matrix> matrices;
  for (uint32_t i = 0; i < list.Length(); ++i) matrices.push_back(matrix(Fields(list.Get(i), "a matrix")));
  const int64_t num_weights = fields.integer("numWeights", 1, kMaxWeights);
  const CpuCeilings::WeightLayout layout = weight_layout(fields);
  return [=](CpuCeilings& ceilings) { return ceilings.matrices_ms(matrices, num_weights, layout); };
}

Measurement measurement(const Fields& fields) {
  const std::string what = fields.text("what");
  if (what == "copy") return [](CpuCeilings& ceilings) { return std::vector{ceilings.copy_gb_per_s()}; };
  if (what == "multiply") return [](CpuCeilings& ceilings) { return std::vector{ceilings.multiply_gflop_per_s()}; };
  if (what == "matrices") return matrices_measurement(fields);
  if (what != "read") {
    fail(ErrorCode::invalid_argument, "what is '%s'; it must be 'read', 'copy', 'multiply' or 'matrices'",
         what.c_str());
  }
  const int64_t streams = fields.integer("streams", 1, 4);
  if (streams == 3) fail(ErrorCode::invalid_argument, "streams must be 1, 2 or 4, not 3");
  const int64_t prefetch_bytes = fields.integer("prefetchBytes", 0, kMaxPrefetchBytes);
  return [=](CpuCeilings& ceilings) {
    return std::vector{ceilings.read_gb_per_s(static_cast<int>(streams), prefetch_bytes)};
  };
}

}  // namespace

Napi::Value DeviceObject::measure_ceiling(const Napi::CallbackInfo& info) {
  return guarded(info.Env(), [&]() -> Napi::Value {
    check_usable();
    if (device_->info.kind != "cpu") {
      fail(ErrorCode::device_unavailable, "ceilings are measured on device cpu, not on %s", device_->info.id.c_str());
    }
    const Measurement measure = measurement(Fields(info));
    if (!ceilings_) ceilings_ = std::make_shared<CpuCeilings>();
    auto job = std::make_unique<Job>(info.Env());
    auto values = std::make_shared<std::vector<double>>();
    job->run = [measure, values, ceilings = ceilings_](Job&) { *values = measure(*ceilings); };
    job->resolve = [values](Job& job) -> Napi::Value {
      Napi::Array result = Napi::Array::New(job.env, values->size());
      for (uint32_t i = 0; i < values->size(); ++i) result.Set(i, (*values)[i]);
      return result;
    };
    return device_->executor->submit(std::move(job));
  });
}

}  // namespace diffqkv::addon
