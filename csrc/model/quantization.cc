#include "model/quantization.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "model/config_fields.h"

namespace diffqkv {
namespace {

using Kind = JsonValue::Kind;

template <size_t count>
void check_keys(const Fields& fields, const std::string_view (&known)[count]) {
  for (const std::string& key : fields.keys()) {
    if (!fields.has(key.c_str()) || std::find(std::begin(known), std::end(known), key) != std::end(known)) continue;
    fields.unsupported(fields.name(printable(key).c_str()) + " is " + Fields::shown(fields.get(key.c_str())) +
                       ": this key is unknown and may change the result of the model");
  }
}

// What a list or an object of per-module settings must be.
void require_empty(const Fields& fields, const char* key) {
  if (!fields.has(key) || fields.get(key).size() == 0) return;
  fields.unsupported(fields.name(key) + " is not empty; one setting for all matrices is supported");
}

void require(const Fields& fields, const char* key, const char* value) {
  const std::string given = fields.string(key, value);
  if (given != value)
    fields.unsupported(fields.name(key) + " is '" + printable(given) + "'; it must be '" + value + "'");
}

int read_bits(const Fields& fields, const char* key, std::initializer_list<int> supported) {
  const int64_t bits = fields.integer(key, 1, 32);
  std::string list;
  for (const int one : supported) {
    if (bits == one) return one;
    list += (list.empty() ? "" : " or ") + std::to_string(one);
  }
  fields.unsupported(fields.name(key) + " is " + std::to_string(bits) + "; it must be " + list);
}

// -1 is one group for a row.
int64_t read_group_size(const Fields& fields) {
  const int64_t size = fields.integer("group_size", -1, 1 << 20);
  if (size == 0) fields.malformed(fields.name("group_size") + " is 0");
  return std::max<int64_t>(size, 0);
}

// Rows and columns of a block.
std::pair<int64_t, int64_t> read_block(const Fields& fields, const char* key) {
  const JsonValue& block = fields.get(key);
  const auto good = [&](size_t i) {
    return block[i].is(Kind::integer) && block[i].integer() > 0 && block[i].integer() <= (1 << 20);
  };
  if (!block.is(Kind::array) || block.size() != 2 || !good(0) || !good(1)) {
    fields.unsupported(fields.name(key) + " is " + Fields::shown(block) +
                       "; it must be an array of two sizes from 1 to 1048576");
  }
  return {block[0].integer(), block[1].integer()};
}

Quantization read_gptq(const Fields& fields) {
  // Without effect on the values: how they were found.
  static constexpr std::string_view kKeys[] = {"batch_size",
                                               "bits",
                                               "block_name_to_quantize",
                                               "checkpoint_format",
                                               "damp_percent",
                                               "dataset",
                                               "desc_act",
                                               "dynamic",
                                               "exllama_config",
                                               "group_size",
                                               "lm_head",
                                               "max_input_length",
                                               "meta",
                                               "model_seqlen",
                                               "modules_in_block_to_quantize",
                                               "pad_token_id",
                                               "pack_dtype",
                                               "quant_method",
                                               "static_groups",
                                               "sym",
                                               "tokenizer",
                                               "true_sequential",
                                               "use_cuda_fp16",
                                               "use_exllama",
                                               "backend",
                                               "cache_block_outputs",
                                               "model_file_base_name",
                                               "model_name_or_path",
                                               "is_marlin_format",
                                               "disable_exllama",
                                               "damp_auto_increment",
                                               "uri",
                                               "quantizer",
                                               "desc",
                                               "mse",
                                               "format"};
  check_keys(fields, kKeys);
  require_empty(fields, "dynamic");
  require(fields, "pack_dtype", "int32");
  if (fields.boolean("is_marlin_format", false)) fields.unsupported(fields.name("is_marlin_format") + " is true");
  Quantization result;
  result.method = Quantization::gptq;
  result.name = "GPTQ";
  result.bits = read_bits(fields, "bits", {2, 4, 8});
  result.group_size = read_group_size(fields);
  const std::string format = fields.string("checkpoint_format", fields.string("format", "gptq").c_str());
  if (format != "gptq" && format != "gptq_v2")
    fields.unsupported(fields.name("checkpoint_format") + " is '" + printable(format) +
                       "'; it must be 'gptq' or 'gptq_v2'");
  result.adds_one = format == "gptq";
  result.has_zeros = true;
  result.has_group_index = fields.boolean("desc_act", false) && result.group_size > 0;
  return result;
}

Quantization read_awq(const Fields& fields) {
  static constexpr std::string_view kKeys[] = {"bits",
                                               "backend",
                                               "do_fuse",
                                               "exllama_config",
                                               "fuse_max_seq_len",
                                               "group_size",
                                               "modules_to_fuse",
                                               "modules_to_not_convert",
                                               "quant_method",
                                               "version",
                                               "zero_point",
                                               "format",
                                               "sym",
                                               "desc_act"};
  check_keys(fields, kKeys);
  std::string version = fields.string("version", "gemm");
  std::transform(version.begin(), version.end(), version.begin(),
                 [](char c) { return static_cast<char>(std::tolower(c)); });
  if (version != "gemm")
    fields.unsupported(fields.name("version") + " is '" + printable(version) + "'; it must be 'gemm'");
  if (!fields.boolean("zero_point", true)) fields.unsupported(fields.name("zero_point") + " is false");
  Quantization result;
  result.method = Quantization::awq;
  result.has_zeros = true;
  result.name = "AWQ";
  result.bits = read_bits(fields, "bits", {4});
  result.group_size = read_group_size(fields);
  return result;
}

Quantization read_fp8(const Fields& fields) {
  // Activations keep their type here, whatever activation_scheme is.
  static constexpr std::string_view kKeys[] = {
      "activation_scheme", "fmt",      "modules_to_not_convert", "quant_method", "weight_block_size",
      "dequantize",        "scale_fmt"};
  check_keys(fields, kKeys);
  require(fields, "fmt", "e4m3");
  const auto [rows, columns] = read_block(fields, "weight_block_size");
  Quantization result;
  result.method = Quantization::fp8;
  result.name = "FP8";
  result.block_rows = rows;
  result.block_columns = columns;
  return result;
}

// The weights of a group of config_groups.
Quantization read_scheme(const Fields& weights) {
  static constexpr std::string_view kKeys[] = {"actorder",    "block_structure", "dynamic",  "group_size", "num_bits",
                                               "observer",    "observer_kwargs", "strategy", "symmetric",  "type",
                                               "scale_dtype", "zp_dtype"};
  check_keys(weights, kKeys);
  Quantization result;
  result.method = Quantization::compressed;
  result.name = "compressed-tensors";
  const std::string type = weights.string("type", "int");
  if (type != "int" && type != "float")
    weights.unsupported(weights.name("type") + " is '" + printable(type) + "'; it must be 'int' or 'float'");
  result.bits = type == "float" ? read_bits(weights, "num_bits", {8}) : read_bits(weights, "num_bits", {4, 8});
  result.has_zeros = !weights.boolean("symmetric", true);
  const std::string order = weights.string("actorder", "");
  if (order != "" && order != "group" && order != "weight" && order != "static" && order != "dynamic")
    weights.unsupported(weights.name("actorder") + " is '" + printable(order) + "'");
  result.has_group_index = order == "group" || order == "dynamic";
  const std::string strategy = weights.string("strategy", "tensor");
  if (strategy == "group") {
    result.group_size = read_group_size(weights);
  } else if (strategy == "block") {
    std::tie(result.block_rows, result.block_columns) = read_block(weights, "block_structure");
  } else if (strategy != "channel" && strategy != "tensor") {
    weights.unsupported(weights.name("strategy") + " is '" + printable(strategy) +
                        "'; it must be 'group', 'channel', 'tensor' or 'block'");
  }
  return result;
}

Quantization read_compressed(const Fields& fields) {
  static constexpr std::string_view kKeys[] = {
      "config_groups",       "format",          "global_compression_ratio", "ignore", "kv_cache_scheme", "quant_method",
      "quantization_status", "sparsity_config", "transform_config",         "version"};
  check_keys(fields, kKeys);
  require_empty(fields, "transform_config");
  if (fields.has("sparsity_config") && fields.get("sparsity_config").size() > 0) {
    const Fields sparsity = fields.object("sparsity_config");
    require(sparsity, "format", "dense");
  }
  const std::string format = fields.string("format", "dense");
  const Fields groups = fields.object("config_groups");
  const std::vector<std::string> names = groups.keys();
  if (names.size() != 1)
    fields.unsupported(fields.name("config_groups") + " has " + std::to_string(names.size()) +
                       " groups; one is supported");
  const Fields group = groups.object(names[0].c_str());
  const Fields weights = group.object("weights");
  const Quantization result = read_scheme(weights);
  const bool is_float = weights.string("type", "int") == "float";
  const char* expected = is_float ? "float-quantized" : "pack-quantized";
  if (format != expected && !(format == "int-quantized" && result.bits == 8 && !is_float) &&
      !(format == "naive-quantized" && result.bits == 8)) {
    fields.unsupported(fields.name("format") + " is '" + printable(format) + "'; for these weights it must be '" +
                       expected + "'");
  }
  // Activations keep their type here, which is more precise than 8-bit floats. Integer activations
  // belong to models that were calibrated for them.
  if (group.has("input_activations") && !is_float)
    group.unsupported(group.name("input_activations") + " is an object: quantized activations are not supported");
  return result;
}

}  // namespace

Quantization read_quantization(const Fields& config) {
  if (!config.has("quantization_config")) return {};
  const Fields fields = config.object("quantization_config");
  const std::string method = fields.string("quant_method", "");
  if (method == "gptq") return read_gptq(fields);
  if (method == "awq") return read_awq(fields);
  if (method == "fp8") return read_fp8(fields);
  if (method == "compressed-tensors") return read_compressed(fields);
  fields.unsupported(fields.name("quant_method") + " is '" + printable(method) +
                     "'; it must be 'gptq', 'awq', 'compressed-tensors' or 'fp8'. Use the checkpoint from which it was "
                     "made, and quantize it by weightType or by diffqkv convert --weight-type");
}

}  // namespace diffqkv
