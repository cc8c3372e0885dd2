// NativeDevice.measureCeiling, for bench/.
#include "addon/device.h"
#include "backend/cpu_ceilings.h"

namespace diffqkv::addon {
namespace {

using Measurement = std::function<std::vector<double>(CpuCeilings&)>;

constexpr int64_t kMaxMatrixSize = 1 << 20, kMaxWeights = 64, kMaxPrefetchBytes = 4096;

CpuCeilings::OutType out_argument(const Napi::Value& value) {
  const DType out = dtype(value, "out");
  if (out == DType::f32) return CpuCeilings::OutType::f32;
  if (out != DType::bf16) fail(ErrorCode::invalid_argument, "out must be 'bf16' or 'f32', not '%s'", dtype_name(out));
  return CpuCeilings::OutType::bf16;
}

CpuCeilings::WeightLayout layout_argument(const Napi::Value& value) {
  const std::string layout = text(value, "layout");
  if (layout == "packed") return CpuCeilings::WeightLayout::packed;
  if (layout != "plain") {
    fail(ErrorCode::invalid_argument, "layout must be 'packed' or 'plain', not '%s'", layout.c_str());
  }
  return CpuCeilings::WeightLayout::plain;
}

CpuCeilings::Matrix matrix_argument(const Napi::Value& value) {
  if (!value.IsObject()) fail(ErrorCode::invalid_argument, "a matrix must be an object");
  const auto size = [&](const char* name) { return integer(property(value, name), name, 1, kMaxMatrixSize); };
  return {size("m"), size("k"), size("n"), out_argument(property(value, "out"))};
}

Measurement matrices_measurement(const Napi::Object& request) {
  const Napi::Value list = request.Get("matrices");
  if (!list.IsArray()) fail(ErrorCode::invalid_argument, "matrices must be an array");
  const Napi::Array array = list.As<Napi::Array>();
  std::vector<CpuCeilings::Matrix> matrices;
  for (uint32_t i = 0; i < array.Length(); ++i) matrices.push_back(matrix_argument(array.Get(i)));
  const int64_t num_weights = integer(request.Get("numWeights"), "numWeights", 1, kMaxWeights);
  const CpuCeilings::WeightLayout layout = layout_argument(request.Get("layout"));
  return [=](CpuCeilings& ceilings) { return ceilings.matrices_ms(matrices, num_weights, layout); };
}

Measurement measurement(const Napi::Object& request) {
  const std::string what = text(request.Get("what"), "what");
  if (what == "copy") return [](CpuCeilings& ceilings) { return std::vector{ceilings.copy_gb_per_s()}; };
  if (what == "multiply") return [](CpuCeilings& ceilings) { return std::vector{ceilings.multiply_gflop_per_s()}; };
  if (what == "matrices") return matrices_measurement(request);
  if (what != "read") fail(ErrorCode::invalid_argument, "no ceiling is called '%s'", what.c_str());
  const int64_t streams = integer(request.Get("streams"), "streams", 1, 4);
  if (streams == 3) fail(ErrorCode::invalid_argument, "streams must be 1, 2 or 4, not 3");
  const int64_t prefetch_bytes = integer(request.Get("prefetchBytes"), "prefetchBytes", 0, kMaxPrefetchBytes);
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
    if (!info[0].IsObject()) fail(ErrorCode::invalid_argument, "the request must be an object");
    const Measurement measure = measurement(info[0].As<Napi::Object>());
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
