#include "model/architectures.h"

#include <algorithm>

namespace diffqkv {
namespace {

// Read for every architecture.
constexpr std::string_view kReadKeys[] = {
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
};

// Without effect on the logits, for every architecture: what only training, sampling, tokenizers or
// the loading code of transformers read. Names that begin with an underscore are notes of
// transformers.
constexpr std::string_view kHarmlessKeys[] = {
    // Training.
    "attention_dropout",
    "attn_pdrop",
    "embd_pdrop",
    "gradient_checkpointing",
    "hidden_dropout",
    "initializer_range",
    "resid_pdrop",
    "unsloth_fixed",
    "unsloth_version",
    // How transformers computes, stores or returns the same numbers.
    "attn_implementation",
    "auto_map",
    "chunk_size_feed_forward",
    "finetuning_task",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "low_cpu_mem_usage",
    "max_window_layers",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "return_dict_in_generate",
    "task_specific_params",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "use_bfloat16",
    "use_cache",
    // Tokenizers and prompts.
    "decoder_start_token_id",
    "model_max_length",
    "pad_token_id",
    "prefix",
    "sep_token_id",
    "tokenizer_class",
    "unk_token_id",
    // Sampling defaults, which this project does not read.
    "bad_words_ids",
    "begin_suppress_tokens",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "remove_invalid_values",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
};

constexpr std::string_view kRopeKeys[] = {
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "factor",
    "finetuned",
    "high_freq_factor",
    "low_freq_factor",
    "original_max_position_embeddings",
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
};

template <typename List>
bool contains(const List& list, std::string_view key) {
  return std::find(std::begin(list), std::end(list), key) != std::end(list);
}

}  // namespace

const std::vector<Architecture>& architectures() {
  static const std::vector<Architecture> rows = {
      {
          .name = "sigma",
          .title = "Sigma (DiffQKV)",
          .aliases = {"SigmaForCausalLM", "sigma", "diffqkv"},
          .diffqkv = true,
          .k_heads_key = "num_key_heads",
          .v_heads_key = "num_value_heads",
          // num_key_value_heads has no effect beside the other two.
          .keys = {"num_key_heads", "num_value_heads", "num_key_value_heads", "aug_q_dim", "key_head_dim",
                   "value_head_dim", "key_lift"},
      },
      {
          .name = "llama",
          .title = "Llama",
          .aliases = {"LlamaForCausalLM", "llama"},
          .keys = {"num_key_value_heads", "attention_bias", "mlp_bias"},
          .qkv_bias = {BiasRule::given_by_key, "attention_bias"},
          .o_bias = {BiasRule::given_by_key, "attention_bias"},
          .mlp_bias = {BiasRule::given_by_key, "mlp_bias"},
          .rope_theta = 10000,
          .rms_norm_eps = 1e-6,
      },
      {
          .name = "qwen2",
          .title = "Qwen2",
          .aliases = {"Qwen2ForCausalLM", "qwen2"},
          .keys = {"num_key_value_heads"},
          .qkv_bias = {BiasRule::present},
          .rope_theta = 10000,
          .rms_norm_eps = 1e-6,
          .use_sliding_window = false,
      },
      {
          .name = "qwen3",
          .title = "Qwen3",
          .aliases = {"Qwen3ForCausalLM", "qwen3"},
          .keys = {"num_key_value_heads", "attention_bias"},
          .qkv_bias = {BiasRule::given_by_key, "attention_bias"},
          .o_bias = {BiasRule::given_by_key, "attention_bias"},
          .q_norm = "self_attn.q_norm.weight",
          .k_norm = "self_attn.k_norm.weight",
          .rope_theta = 10000,
          .rms_norm_eps = 1e-6,
          .default_head_dim = 128,
          .use_sliding_window = false,
      },
  };
  return rows;
}

const Architecture* find_architecture(std::string_view alias) {
  for (const Architecture& row : architectures()) {
    if (contains(row.aliases, alias)) return &row;
  }
  return nullptr;
}

std::string architecture_titles() {
  const std::vector<Architecture>& rows = architectures();
  std::string text;
  for (size_t i = 0; i < rows.size(); i++)
    text += (i == 0 ? "" : i + 1 < rows.size() ? ", " : " or ") + std::string(rows[i].title);
  return text;
}

bool is_known_key(const Architecture& architecture, std::string_view key) {
  return key.starts_with('_') || contains(kReadKeys, key) || contains(kHarmlessKeys, key) ||
         contains(architecture.keys, key);
}

bool is_known_rope_key(std::string_view key) { return contains(kRopeKeys, key); }

}  // namespace diffqkv
