// The forward graph. Per layer, with h the residual stream in f32 and x = rms_norm(h):
//
//   q = rope(gated_mlp(x)), k = rope(W_k x), v = W_v x    k and v are appended to the cache
//                                                     by architecture: + bias, heads normalized
//   h += W_o attention(q, K, V)                       with half K dim: lifted K, or W_lift^T q
//   h += W_down(act(W_gate x') * W_up x'),  x' = rms_norm(h)
//
// By architecture, a norm is missing (x = h), or there is one more: h += rms_norm(W_o ...).
//
// In the last layer, K and V are computed for all tokens and the rest only for the last token, whose
// logits are needed, or for those of a RowOutput. In the chunks of a prompt before the last chunk, no
// logits are needed.
#include "model/forward.h"

#include <algorithm>

#include "model/rope_config.h"

namespace diffqkv {
namespace {

class Graph {
 public:
  Graph(Backend& backend, const Config& config, const Weights& weights, Workspace& workspace, const ForwardStep& step)
      : backend_(backend), config_(config), weights_(weights), ws_(workspace), step_(step), dtype_(weights.dtype) {
    // One upload: page tables, tokens, positions, and for each token its number of keys and its
    // sequence.
    for (const ForwardSequence& sequence : step.sequences) num_tokens_ += sequence.num_tokens;
    const int64_t n = num_tokens_;
    constexpr size_t kTableBytes = kDecodeBatch * sizeof(KvPage*);
    std::vector<uint8_t> host(kTableBytes + 4 * n * sizeof(int32_t));
    const KvPage** const tables = reinterpret_cast<const KvPage**>(host.data());
    int32_t* const numbers = reinterpret_cast<int32_t*>(host.data() + kTableBytes);
    int64_t t = 0;
    for (size_t i = 0; i < step.sequences.size(); i++) {
      const ForwardSequence& sequence = step.sequences[i];
      tables[i] = sequence.cache->table();
      for (int64_t j = 0; j < sequence.num_tokens; j++, t++) {
        numbers[t] = step.device_tokens.empty() ? step.tokens[t] : 0;
        numbers[n + t] = static_cast<int32_t>(sequence.pos + j);
        numbers[2 * n + t] = static_cast<int32_t>(sequence.pos + j + 1);
        numbers[3 * n + t] = static_cast<int32_t>(i);
      }
      max_kv_len_ = std::max(max_kv_len_, sequence.pos + sequence.num_tokens);
    }
    if (is_replayable()) max_kv_len_ = Replays::longest_kv_len(max_kv_len_);
    backend_.upload(ws_.steps.data(), host.data(), host.size());
    tables_ = ws_.steps.as<const KvPage*>();
    int32_t* const tokens = reinterpret_cast<int32_t*>(ws_.steps.as<const KvPage*>() + kDecodeBatch);
    copy_device_tokens(tokens);
    tokens_ = tokens;
    positions_ = tokens_ + n;
    kv_lens_ = tokens_ + 2 * n;
    sequences_ = tokens_ + 3 * n;
    if (step.rope_length > 0 && config.is_dynamic()) upload_dynamic_rope();
    if (config.is_latent()) order_rows(n);
  }

  void run() {
    check_cancels();
    if (!is_replayable()) return make_calls();
    const Replays::Key key = {num_tokens_,      max_kv_len_,           step_.sequences[0].cache->types(),
                              step_.logits,     step_.rope_length > 0, step_.selective_top_k,
                              step_.renormalize};
    ws_.replays.run(backend_, key, [&] { make_calls(); });
  }

 private:
  bool is_replayable() const {
    return num_tokens_ == static_cast<int64_t>(step_.sequences.size()) && step_.rows == RowOutput::none &&
           can_replay(backend_, config_);
  }

  // Neighbors at once.
  void copy_device_tokens(int32_t* to) {
    const std::vector<const int32_t*>& from = step_.device_tokens;
    for (size_t begin = 0, end = 0; begin < from.size(); begin = end) {
      for (end = begin + 1; end < from.size() && from[end] == from[begin] + (end - begin);) end++;
      backend_.copy(to + begin, from[begin], (end - begin) * sizeof(int32_t));
    }
  }

  void check_cancels() const {
    for (const std::atomic<bool>* cancel : step_.cancels) {
      if (!cancel->load(std::memory_order_relaxed)) continue;
      fail(ErrorCode::aborted, "the forward pass was aborted at token %lld",
           static_cast<long long>(step_.sequences[0].pos));
    }
  }

  void make_calls() {
    embed();
    const int64_t n = num_tokens_;
    const int64_t num_last = static_cast<int64_t>(step_.sequences.size());
    const int64_t last = config_.num_layers - 1;
    const bool has_all_rows = step_.rows == RowOutput::log_probs || step_.rows == RowOutput::all_hidden;
    const int64_t first_output = has_all_rows ? 0 : n - num_last;
    for (int64_t layer = 0; layer <= last; layer++) {
      if (!is_replayable()) check_cancels();
      const LayerWeights& w = weights_.layers[layer];
      const int64_t first = layer < last ? 0 : first_output;
      const bool has_query = layer < last || step_.logits || step_.rows != RowOutput::none;
      const bool at_once = has_query && first == 0;  // the products with x of K, V and Q
      if (!w.input_norm.data()) convert_residual(0, n);
      if (config_.is_latent()) {
        latent_row(w, at_once);
      } else {
        keys_and_values(w, at_once);
      }
      if (!has_query) return kv_append(layer, {});
      const int64_t count = n - first;
      if (!at_once) query_products(w, {}, first, count);
      query(w, first, count);
      kv_append(layer, query_rotation(layer, first, count));
      attention(w, layer, first, count);
      if (config_.differential) subtract(w, first, count);
      if (config_.is_latent()) expand_values(w, first, count);
      attention_output(w, first, count);
      if (!w.ffn_norm.data()) convert_residual(first, count);
      ffn(w, first, count);
    }
    switch (step_.rows) {
      case RowOutput::none: return logits(ws_.logits, first_output, num_last);
      case RowOutput::log_probs: return log_probs();
      case RowOutput::last_hidden:
      case RowOutput::all_hidden: return final_norm(first_output, n - first_output);
    }
  }

  void upload_dynamic_rope() {
    const RopeTable table = dynamic_rope(config_, step_.rope_length);
    const auto upload = [&](const Buffer& buffer, const std::vector<double>& values) {
      backend_.upload(buffer.data(), values.data(), values.size() * sizeof(double));
    };
    upload(ws_.dynamic_rope.inv_freq, table.inv_freq);
    upload(ws_.dynamic_rope.k_inv_freq, table.k_inv_freq);
  }

  // Row `index` of a buffer in the type of the weights.
  uint8_t* row(const Buffer& buffer, int64_t index, int64_t width) const {
    return buffer.as<uint8_t>() + index * width * dtype_size(dtype_);
  }
  float* residual(int64_t index) const { return ws_.residual.as<float>() + index * config_.hidden_size; }

  void embed() {
    EmbedParams p;
    p.table = weights_.embed.data();
    p.tokens = tokens_;
    p.out = ws_.residual.data();
    p.table_dtype = dtype_;
    p.out_dtype = DType::f32;
    p.num_tokens = num_tokens_;
    p.vocab_size = config_.vocab_size;
    p.hidden_size = config_.hidden_size;
    p.scale = weights_.embedding_scale;
    backend_.embed(p);
  }

  // x of the products that follow a norm: rows of residual, from `first` on. Without a norm, those
  // of `converted`.
  struct Input {
    const void* x;
    InputNorm norm;
  };
  Input input(const Buffer& norm, int64_t first) const {
    if (!norm.data()) return {row(ws_.converted, first, config_.hidden_size), {}};
    return {residual(first), {norm.as<float>(), static_cast<float>(config_.residual_eps)}};
  }

  // out[i] = scale * table[rows[i]], for `count` rows of `size` elements.
  void gather_rows(const void* table, DType table_dtype, const Buffer& rows, void* out, DType out_dtype, int64_t count,
                   int64_t size, int64_t table_rows = 0, float scale = 1) {
    EmbedParams p;
    p.table = table;
    p.tokens = rows.as<int32_t>();
    p.out = out;
    p.table_dtype = table_dtype;
    p.out_dtype = out_dtype;
    p.num_tokens = count;
    p.vocab_size = std::max(count, table_rows);
    p.hidden_size = size;
    p.scale = scale;
    backend_.embed(p);
  }

  // converted = residual, in the type of the weights: the lookup of rows 0, 1, 2 and so on.
  void convert_residual(int64_t first, int64_t count) {
    gather_rows(residual(first), DType::f32, ws_.rows, row(ws_.converted, first, config_.hidden_size), dtype_, count,
                config_.hidden_size);
  }

  // residual += rms_norm(branch), for what a layer has computed for `count` rows from `first`.
  void add_branch(const Buffer& weight, int64_t first, int64_t count) {
    RmsNormParams p;
    p.x = ws_.branch.data();
    p.weight = weight.data();
    p.out = residual(first);
    p.x_dtype = p.weight_dtype = p.out_dtype = DType::f32;
    p.num_tokens = count;
    p.hidden_size = config_.hidden_size;
    p.eps = static_cast<float>(config_.rms_norm_eps);
    p.accumulate = true;
    backend_.rms_norm(p);
  }

  // x += bias, for rows of `size` elements. Nothing if there is no bias.
  void add_bias(void* x, const Buffer& bias, DType dtype, int64_t count, int64_t size) {
    if (!bias.data()) return;
    AddBiasParams p;
    p.x = x;
    p.bias = bias.as<float>();
    p.out = x;
    p.dtype = dtype;
    p.num_tokens = count;
    p.num_features = size;
    backend_.add_bias(p);
  }

  // RMSNorm of each head of `count` rows of `size` elements, or of whole rows, in place. Nothing if
  // there is no weight.
  void normalize_heads(void* x, const Buffer& weight, int64_t count, int64_t size, double eps) {
    if (!weight.data()) return;
    RmsNormParams p;
    p.x = x;
    p.weight = weight.data();
    p.out = x;
    p.x_dtype = p.out_dtype = dtype_;
    p.weight_dtype = DType::f32;
    p.hidden_size = static_cast<int64_t>(weight.bytes() / sizeof(float));
    p.num_tokens = count * size / p.hidden_size;
    p.eps = static_cast<float>(eps);
    backend_.rms_norm(p);
  }

  // y = x weight^T, or y += x weight^T, for `count` rows.
  void product(const void* x, const WeightView& weight, void* y, DType x_dtype, DType y_dtype, int64_t count,
               int64_t in_features, int64_t out_features, bool accumulate = false) {
    MatmulParams p;
    p.x = x;
    p.weight = weight;
    p.out = y;
    p.x_dtype = x_dtype;
    p.out_dtype = y_dtype;
    p.num_tokens = count;
    p.in_features = in_features;
    p.out_features = out_features;
    p.accumulate = accumulate;
    backend_.matmul(p);
  }

  // Whether products with these weights may be one call.
  static bool joins(const WeightView& a, const WeightView& b) {
    return a.dtype == b.dtype && a.group_size == b.group_size && a.scale_dtype == b.scale_dtype;
  }

  // Products of hidden_size features with weights, for `count` rows. Outputs without a weight are
  // left out.
  void project(std::initializer_list<MatmulOutput> outputs, const Input& input, DType out_dtype, int64_t count) {
    MatmulParams p;
    p.x = input.x;
    p.norm = input.norm;
    p.x_dtype = dtype_;
    p.out_dtype = out_dtype;
    p.num_tokens = count;
    p.in_features = config_.hidden_size;
    const auto flush = [&] {
      if (p.weight.data) backend_.matmul(p);
      p.weight = {};
      p.num_others = 0;
    };
    for (const MatmulOutput& output : outputs) {
      if (!output.weight.data) continue;
      if (p.weight.data && joins(output.weight, p.weight) && p.num_others < MatmulParams::kMaxOthers) {
        p.others[p.num_others++] = output;
        continue;
      }
      flush();
      p.weight = output.weight;
      p.out = output.out;
      p.out_features = output.out_features;
    }
    flush();
  }

  // The product that Q begins with, for rows from `first` on. None if augmented Q is folded.
  MatmulOutput query_output(const LayerWeights& w, int64_t first) const {
    if (config_.is_latent()) {
      const Latent& latent = config_.latent;
      if (latent.q_rank > 0) return {w.q_a.view(), ws_.q_a.data(), latent.q_rank};
      return {w.q.view(), ws_.heads_a.data(), config_.num_q_heads * (latent.nope + latent.rope)};
    }
    if (weights_.folded) return {};
    const int64_t size = config_.q_size();
    return {w.q.view(), row(config_.aug_q_size > 0 ? ws_.q_in : ws_.q, first, size), size};
  }

  // The products with x that Q begins with, for `count` rows from `first`, and two others, which
  // may be empty.
  void query_products(const LayerWeights& w, const MatmulOutput (&others)[2], int64_t first, int64_t count) {
    const Input x = input(w.input_norm, first);
    if (config_.is_latent() || !weights_.folded) {
      return project({others[0], others[1], query_output(w, first)}, x, dtype_, count);
    }
    GatedMlpParams p = augmented(w, row(ws_.q, first, config_.q_size()), count, config_.hidden_size);
    p.x = x.x;
    p.norm = x.norm;
    for (const MatmulOutput& other : others) {
      if (!other.weight.data) continue;
      if (joins(other.weight, p.up)) {
        p.others[p.num_others++] = other;
      } else {
        project({other}, x, dtype_, count);
      }
    }
    backend_.gated_mlp(p);
  }

  void keys_and_values(const LayerWeights& w, bool with_query) {
    const MatmulOutput k = {w.k.view(), ws_.k.data(), config_.k_size()};
    const MatmulOutput v = {w.v.view(), ws_.v.data(), config_.v_size()};
    if (with_query) {
      query_products(w, {k, v}, 0, num_tokens_);
    } else {
      project({k, v}, input(w.input_norm, 0), dtype_, num_tokens_);
    }
    add_bias(ws_.k.data(), w.k_bias, dtype_, num_tokens_, config_.k_size());
    add_bias(ws_.v.data(), w.v_bias, dtype_, num_tokens_, config_.v_size());
    normalize_heads(ws_.k.data(), w.k_norm, num_tokens_, config_.k_size(), config_.rms_norm_eps);
  }

  // Of the norms of MLA: the default of their class in transformers, not that of the config.
  static constexpr double kLatentEps = 1e-6;

  // MLA: the rows of the cache, not rotated.
  void latent_row(const LayerWeights& w, bool with_query) {
    const Latent& latent = config_.latent;
    const int64_t n = num_tokens_, size = config_.head_dim_k;
    const MatmulOutput vector = {w.latent.view(), ws_.latent.data(), latent.rank};
    const MatmulOutput rotary = {w.rotary.view(), ws_.rotary.data(), latent.rope};
    if (with_query) {
      query_products(w, {vector, rotary}, 0, n);
    } else {
      project({vector, rotary}, input(w.input_norm, 0), dtype_, n);
    }
    add_bias(ws_.latent.data(), w.latent_bias, dtype_, n, latent.rank);
    normalize_heads(ws_.latent.data(), w.latent_norm, n, latent.rank, kLatentEps);
    add_bias(ws_.rotary.data(), w.rotary_bias, dtype_, n, latent.rope);
    product(ws_.latent.data(), weights_.place_latent.view(), ws_.cached_row.data(), dtype_, DType::f32, n, latent.rank,
            size);
    product(ws_.rotary.data(), weights_.place_rotary.view(), ws_.cached_row.data(), dtype_, DType::f32, n, latent.rope,
            size, true);
  }

  // out[h] = weight[h] x[h] for each head h. x and out are [count, num_q_heads, ...]; scratch has the
  // rows of x by head.
  void for_each_head(const void* x, const WeightBuffer& weight, const Buffer& scratch, void* out, int64_t count,
                     int64_t in_features, int64_t out_features) {
    const int64_t heads = config_.num_q_heads;
    order_rows(count);
    gather_rows(x, dtype_, ws_.by_head, scratch.data(), dtype_, count * heads, in_features);
    uint8_t* products = scratch.as<uint8_t>() + count * heads * in_features * dtype_size(dtype_);
    for (int64_t head = 0; head < heads; head++) {
      product(scratch.as<uint8_t>() + head * count * in_features * dtype_size(dtype_),
              weight_rows(weight.view(), in_features, head * out_features),
              products + head * count * out_features * dtype_size(dtype_), dtype_, dtype_, count, in_features,
              out_features);
    }
    gather_rows(products, dtype_, ws_.by_token, out, dtype_, count * heads, out_features);
  }

  // by_head[h * count + t] = t * num_q_heads + h, and by_token is the inverse.
  void order_rows(int64_t count) {
    if (ordered_ == count) return;
    const int64_t heads = config_.num_q_heads;
    std::vector<int32_t> by_head(count * heads), by_token(count * heads);
    for (int64_t h = 0; h < heads; h++) {
      for (int64_t t = 0; t < count; t++) {
        by_head[h * count + t] = static_cast<int32_t>(t * heads + h);
        by_token[t * heads + h] = static_cast<int32_t>(h * count + t);
      }
    }
    backend_.upload(ws_.by_head.data(), by_head.data(), by_head.size() * sizeof(int32_t));
    backend_.upload(ws_.by_token.data(), by_token.data(), by_token.size() * sizeof(int32_t));
    ordered_ = count;
  }

  // MLA: the V heads, from the sums of latent vectors that attention has computed.
  void expand_values(const LayerWeights& w, int64_t first, int64_t count) {
    for_each_head(row(ws_.attention, first, config_.attention_size()), w.expand, ws_.heads_b, ws_.heads_a.data(), count,
                  config_.head_dim_vo, config_.latent.v);
  }

  // MLA: q = absorb W_q x, not rotated.
  void latent_query(const LayerWeights& w, int64_t count, void* q) {
    const Latent& latent = config_.latent;
    const int64_t size = latent.nope + latent.rope;
    if (latent.q_rank > 0) {
      add_bias(ws_.q_a.data(), w.q_a_bias, dtype_, count, latent.q_rank);
      normalize_heads(ws_.q_a.data(), w.q_a_norm, count, latent.q_rank, kLatentEps);
      product(ws_.q_a.data(), w.q.view(), ws_.heads_a.data(), dtype_, dtype_, count, latent.q_rank,
              config_.num_q_heads * size);
    }
    for_each_head(ws_.heads_a.data(), w.absorb, ws_.heads_b, q, count, size, config_.head_dim_qk);
  }

  // minuend = (1 - lambda_init) rms_norm(attention(a) - lambda attention(b)) for each pair of heads.
  void subtract(const LayerWeights& w, int64_t first, int64_t count) {
    // The heads a of a V head are one row of a table, the heads b the next.
    const void* table = row(ws_.attention, first, config_.attention_size());
    const int64_t pairs = count * config_.num_v_heads, size = config_.o_size() / config_.num_v_heads;
    gather_rows(table, dtype_, ws_.minuend_rows, ws_.minuend.data(), dtype_, pairs, size, 2 * pairs);
    gather_rows(table, dtype_, ws_.subtrahend_rows, ws_.subtrahend.data(), DType::f32, pairs, size, 2 * pairs,
                -w.lambda);
    RmsNormParams p;
    p.x = p.out = ws_.minuend.data();
    p.residual = ws_.subtrahend.data();
    p.weight = w.difference_norm.data();
    p.x_dtype = p.out_dtype = dtype_;
    p.residual_dtype = p.weight_dtype = DType::f32;
    p.num_tokens = count * config_.num_q_heads / 2;
    p.hidden_size = config_.head_dim_vo;
    p.eps = static_cast<float>(config_.rms_norm_eps);
    backend_.rms_norm(p);
  }

  // residual += W_o attention, normalized if the architecture does so.
  void attention_output(const LayerWeights& w, int64_t first, int64_t count) {
    const bool branch = w.attention_out_norm.data();
    float* out = branch ? ws_.branch.as<float>() : residual(first);
    const void* x = config_.differential  ? ws_.minuend.data()
                    : config_.is_latent() ? ws_.heads_a.data()
                                          : row(ws_.attention, first, config_.o_size());
    product(x, w.o.view(), out, dtype_, DType::f32, count, config_.o_size(), config_.hidden_size, !branch);
    add_bias(out, w.o_bias, DType::f32, count, config_.hidden_size);
    if (branch) add_branch(w.attention_out_norm, first, count);
  }

  // out = W_down(silu(W_gate x) * W_up x) of augmented Q, for `count` rows. The caller sets x.
  GatedMlpParams augmented(const LayerWeights& w, void* out, int64_t count, int64_t in_features) const {
    GatedMlpParams p;
    p.gate = w.q_gate.view();
    p.up = w.q_up.view();
    p.down = w.q_down.view();
    p.out = out;
    p.x_dtype = p.out_dtype = dtype_;
    p.num_tokens = count;
    p.in_features = in_features;
    p.inner_size = config_.aug_q_size;
    p.out_features = config_.q_size();
    return p;
  }

  // residual += W_down(act(W_gate x) * W_up x), for x = rms_norm(residual), normalized if the
  // architecture does so.
  void ffn(const LayerWeights& w, int64_t first, int64_t count) {
    const bool branch = w.ffn_out_norm.data();
    float* out = branch ? ws_.branch.as<float>() : residual(first);
    if (config_.mlp_bias) {
      ffn_with_biases(w, first, count, out, !branch);
    } else {
      const Input x = input(w.ffn_norm, first);
      GatedMlpParams p;
      p.x = x.x;
      p.norm = x.norm;
      p.gate = w.gate.view();
      p.up = w.up.view();
      p.down = w.down.view();
      p.out = out;
      p.x_dtype = dtype_;
      p.out_dtype = DType::f32;
      p.num_tokens = count;
      p.in_features = p.out_features = config_.hidden_size;
      p.inner_size = config_.intermediate_size;
      p.activation = config_.activation;
      p.accumulate = !branch;
      backend_.gated_mlp(p);
    }
    if (branch) add_branch(w.ffn_out_norm, first, count);
  }

  // The same with biases, which are calls of their own.
  void ffn_with_biases(const LayerWeights& w, int64_t first, int64_t count, float* out, bool accumulate) {
    const int64_t hidden = config_.hidden_size;
    const int64_t inner = config_.intermediate_size;
    const DType dtype = dtype_ == DType::bf16 ? DType::bf16 : DType::f32;
    project({{w.gate.view(), ws_.gate.data(), inner}, {w.up.view(), ws_.up.data(), inner}}, input(w.ffn_norm, first),
            dtype, count);
    if (w.gate.data()) add_bias(ws_.gate.data(), w.gate_bias, dtype, count, inner);
    add_bias(ws_.up.data(), w.up_bias, dtype, count, inner);
    GatedActivationParams activation;
    activation.gate = w.gate.data() ? ws_.gate.data() : nullptr;
    activation.up = ws_.up.data();
    activation.out = ws_.up.data();
    activation.dtype = dtype;
    activation.activation = config_.activation;
    activation.count = count * inner;
    backend_.gated_activation(activation);
    product(ws_.up.data(), w.down.view(), out, dtype, DType::f32, count, inner, hidden, accumulate);
    add_bias(out, w.down_bias, DType::f32, count, hidden);
  }

  // Computes Q from its products with x, without RoPE, which kv_append applies.
  void query(const LayerWeights& w, int64_t first, int64_t count) {
    const int64_t size = config_.q_size();
    void* q = row(ws_.q, first, size);
    if (config_.is_latent()) {
      latent_query(w, count, q);
    } else if (config_.aug_q_size > 0 && !weights_.folded) {
      GatedMlpParams p = augmented(w, q, count, size);
      p.x = row(ws_.q_in, first, size);
      backend_.gated_mlp(p);
    }
    add_bias(q, w.q_bias, dtype_, count, size);
    normalize_heads(q, w.q_norm, count, size, config_.rms_norm_eps);
  }

  // RoPE of Q, if the layer has one.
  RopeParams query_rotation(int64_t layer, int64_t first, int64_t count) const {
    RopeParams p;
    if (config_.layers[layer].rope < 0) return p;
    p.x = p.out = row(ws_.q, first, config_.q_size());
    p.positions = positions_ + first;
    p.inv_freq = rope_buffers(layer).inv_freq.as<double>();
    p.dtype = dtype_;
    p.num_tokens = count;
    p.num_heads = config_.num_q_heads;
    p.head_dim = config_.head_dim_qk;
    p.scale = rope_scale(layer);
    return p;
  }

  const RopeBuffers& rope_buffers(int64_t layer) const {
    if (step_.rope_length > 0 && config_.is_dynamic()) return ws_.dynamic_rope;
    return (step_.rope_length > 0 ? weights_.long_ropes : weights_.ropes)[config_.layers[layer].rope];
  }

  float rope_scale(int64_t layer) const {
    const bool is_long = step_.rope_length > 0 && !config_.is_dynamic();
    const auto& tables = is_long ? config_.long_ropes : config_.ropes;
    return static_cast<float>(tables[config_.layers[layer].rope].attention_factor);
  }

  void kv_append(int64_t layer, const RopeParams& q) {
    const KvCache& cache = *step_.sequences[0].cache;
    const KeyLift& lift = config_.key_lift;
    KvAppendParams p;
    p.k = config_.is_latent() ? ws_.cached_row.data() : ws_.k.data();
    p.v = ws_.v.data();
    p.pages = tables_;
    p.sequences = sequences_;
    p.positions = positions_;
    const bool rotates = config_.layers[layer].rope >= 0 && !lift.before_rope;
    p.inv_freq = rotates ? rope_buffers(layer).k_inv_freq.as<double>() : nullptr;
    p.rope_scale = rotates ? rope_scale(layer) : 1;
    p.k_dtype = config_.is_latent() ? DType::f32 : dtype_;
    p.v_dtype = dtype_;
    p.k_cache = cache.k_view(layer);
    p.v_cache = cache.v_view(layer);
    if (config_.is_latent()) p.v_cache.num_heads = 0;  // V is K
    p.num_tokens = num_tokens_;
    p.max_kv_len = max_kv_len_;
    p.page_tokens = KvPool::kPageTokens;
    p.q = q;
    backend_.kv_append(p);
  }

  // The parameters that both attention operators have, for the query rows from `first` and the
  // caches of `pages`.
  AttentionParams attention_params(int64_t layer, int64_t first, const KvPage* const* pages) const {
    const KvCache& cache = *step_.sequences[0].cache;
    const KeyLift& lift = config_.key_lift;
    AttentionParams p;
    p.q = lift.absorbed() ? row(ws_.q_lifted, first, config_.num_q_heads * config_.head_dim_k)
                          : row(ws_.q, first, config_.q_size());
    p.out = row(ws_.attention, first, config_.attention_size());
    p.q_dtype = p.out_dtype = dtype_;
    p.k = lift.on_keys() ? ws_.lifted.k_view() : cache.k_view(layer);
    p.v = cache.v_view(layer);
    p.kv_len = max_kv_len_;
    p.pages = pages;
    p.page_tokens = KvPool::kPageTokens;
    p.num_q_heads = config_.num_q_heads;
    const LayerConfig& plan = config_.layers[layer];
    p.sm_scale = static_cast<float>(config_.score_scale);
    p.softcap = static_cast<float>(config_.score_softcap);
    p.window = plan.window;
    return p;
  }

  void attention(const LayerWeights& w, int64_t layer, int64_t first, int64_t count) {
    if (config_.key_lift.absorbed()) absorb_lift(w, first, count);
    if (!config_.key_lift.on_keys()) return attend(layer, first, count, tables_, step_.sequences.size() == 1);
    // Scratch memory has the lifted keys of one sequence at a time. If there are several, each has
    // one token.
    for (size_t i = 0; i < step_.sequences.size(); i++) {
      const ForwardSequence& sequence = step_.sequences[i];
      if (layer == 0 || step_.sequences.size() > 1) {
        ws_.lifted.begin(*sequence.cache, sequence.pos + sequence.num_tokens);
      }
      ws_.lifted.lift(w, weights_, *sequence.cache, layer);
      const bool single = step_.sequences.size() == 1;
      attend(layer, single ? first : static_cast<int64_t>(i), single ? count : 1, ws_.lifted.pages(), true);
    }
  }

  void attend(int64_t layer, int64_t first, int64_t count, const KvPage* const* pages, bool one_sequence) {
    if (count > 1 && one_sequence && step_.selective_top_k == 0) {
      AttentionPrefillParams p{attention_params(layer, first, pages)};
      p.batch_size = 1;
      p.q_len = count;
      p.causal = true;
      backend_.attention_prefill(p);
      return;
    }
    // Only decode has selective V, so each query of a prompt is a sequence of its own, all with the
    // same cache.
    AttentionDecodeParams p{attention_params(layer, first, pages)};
    p.batch_size = count;
    p.kv_lens = kv_lens_ + first;
    p.pages_shared = one_sequence;
    p.top_k = step_.selective_top_k;
    p.renormalize = step_.renormalize;
    backend_.attention_decode(p);
  }

  // q . (W k) = (W^T q) . k for each head. One sequence at a time, because a product of another
  // size may round differently.
  void absorb_lift(const LayerWeights& w, int64_t first, int64_t count) {
    const int64_t at_once = step_.sequences.size() == 1 ? count : 1;
    for (int64_t t = first; t < first + count; t += at_once) {
      product(row(ws_.q, t, config_.q_size()), w.k_lift.view(),
              row(ws_.q_lifted, t, config_.num_q_heads * config_.head_dim_k), dtype_, dtype_,
              at_once * config_.num_q_heads, config_.head_dim_qk, config_.head_dim_k);
    }
  }

  void logits(const Buffer& out, int64_t first, int64_t count) {
    project({{weights_.output_matrix(), out.data(), config_.vocab_size}}, input(weights_.norm, first), DType::f32,
            count);
    if (config_.logit_softcap == 0) return;
    SoftcapParams cap;
    cap.x = cap.out = out.as<float>();
    cap.count = count * config_.vocab_size;
    cap.cap = static_cast<float>(config_.logit_softcap);
    backend_.softcap(cap);
  }

  // Some rows at a time, so that the logits of all are never in memory together.
  void log_probs() {
    backend_.upload(ws_.row_targets.data(), step_.targets, num_tokens_ * sizeof(int32_t));
    for (int64_t first = 0; first < num_tokens_; first += kScoredRows) {
      check_cancels();
      LogProbsParams p;
      p.num_rows = std::min(kScoredRows, num_tokens_ - first);
      p.vocab_size = config_.vocab_size;
      logits(ws_.row_logits, first, p.num_rows);
      p.logits = ws_.row_logits.as<float>();
      p.tokens = ws_.row_targets.as<int32_t>() + first;
      p.out = ws_.row_log_probs.as<float>() + first;
      backend_.log_probs(p);
    }
  }

  void final_norm(int64_t first, int64_t count) {
    RmsNormParams p;
    p.x = p.out = residual(first);
    p.weight = weights_.norm.data();
    p.x_dtype = p.weight_dtype = p.out_dtype = DType::f32;
    p.num_tokens = count;
    p.hidden_size = config_.hidden_size;
    p.eps = static_cast<float>(config_.residual_eps);
    backend_.rms_norm(p);
  }

  Backend& backend_;
  const Config& config_;
  const Weights& weights_;
  Workspace& ws_;
  const ForwardStep& step_;
  const DType dtype_;
  int64_t num_tokens_ = 0;
  int64_t max_kv_len_ = 0;
  int64_t ordered_ = 0;  // number of tokens for which by_head and by_token are
  // In device memory.
  const KvPage* const* tables_;
  const int32_t* tokens_;
  const int32_t* positions_;
  const int32_t* kv_lens_;
  const int32_t* sequences_;
};

}  // namespace

Workspace::Workspace(const std::shared_ptr<Backend>& backend, const Config& config, const Weights& weights)
    : prefill_chunk(prefill_chunk_for(backend->free_memory())) {
  const auto activations = [&](int64_t width) {
    return Buffer(backend, prefill_chunk * width * dtype_size(weights.dtype));
  };
  residual = Buffer(backend, prefill_chunk * config.hidden_size * sizeof(float));
  if (config.aug_q_size > 0 && !weights.folded) q_in = activations(config.q_size());
  q = activations(config.q_size());
  k = activations(config.k_size());
  v = activations(config.v_size());
  if (config.key_lift.absorbed()) q_lifted = activations(config.num_q_heads * config.head_dim_k);
  attention = activations(config.attention_size());
  if (config.mlp_bias) {
    const DType dtype = weights.dtype == DType::bf16 ? DType::bf16 : DType::f32;
    gate = Buffer(backend, prefill_chunk * config.intermediate_size * dtype_size(dtype));
    up = Buffer(backend, prefill_chunk * config.intermediate_size * dtype_size(dtype));
  }
  // i32 [count]: 0, step, 2 * step and so on, from `first`.
  const auto numbers = [&](int64_t count, int32_t first, int32_t step) {
    std::vector<int32_t> values(count);
    for (int64_t i = 0; i < count; i++) values[i] = first + static_cast<int32_t>(i) * step;
    Buffer buffer(backend, values.size() * sizeof(int32_t));
    backend->upload(buffer.data(), values.data(), buffer.bytes());
    backend->synchronize();
    return buffer;
  };
  const Architecture& architecture = *config.architecture;
  if (architecture.attention_out_norm || architecture.ffn_out_norm)
    branch = Buffer(backend, prefill_chunk * config.hidden_size * sizeof(float));
  if (!architecture.input_norm || !architecture.ffn_norm) {
    rows = numbers(prefill_chunk, 0, 1);
    converted = activations(config.hidden_size);
  }
  if (config.is_latent()) {
    const Latent& part = config.latent;
    const int64_t heads = config.num_q_heads, size = part.nope + part.rope;
    if (part.q_rank > 0) q_a = activations(part.q_rank);
    latent = activations(part.rank);
    rotary = activations(part.rope);
    heads_a = activations(heads * std::max(size, part.v));
    heads_b = activations(heads * (std::max(size, part.v) + config.head_dim_k));
    cached_row = Buffer(backend, prefill_chunk * config.head_dim_k * sizeof(float));
    by_head = Buffer(backend, prefill_chunk * heads * sizeof(int32_t));
    by_token = Buffer(backend, prefill_chunk * heads * sizeof(int32_t));
  }
  if (config.differential) {
    minuend = activations(config.o_size());
    subtrahend = Buffer(backend, prefill_chunk * config.o_size() * sizeof(float));
    minuend_rows = numbers(prefill_chunk * config.num_v_heads, 0, 2);
    subtrahend_rows = numbers(prefill_chunk * config.num_v_heads, 1, 2);
  }
  if (config.is_dynamic()) {
    const size_t bytes = static_cast<size_t>(config.head_dim_qk / 2) * sizeof(double);
    dynamic_rope = {Buffer(backend, bytes), Buffer(backend, bytes)};
  }
  steps = Buffer(backend, kDecodeBatch * sizeof(KvPage*) + 4 * prefill_chunk * sizeof(int32_t));
  logits = Buffer(backend, kDecodeBatch * config.vocab_size * sizeof(float));
  sample_rows = Buffer(backend, kDecodeBatch * sizeof(SampleRow));
  sampled = Buffer(backend, 3 * 2 * kDecodeBatch * sizeof(int32_t));
  if (config.key_lift.on_keys()) lifted = LiftedKeys(backend, config, weights.dtype);
}

bool can_replay(Backend& backend, const Config& config) {
  return backend.replayer() && !config.is_dynamic() && !config.key_lift.on_keys();
}

void run_forward(Backend& backend, const Config& config, const Weights& weights, Workspace& workspace,
                 const ForwardStep& step) {
  Graph(backend, config, weights, workspace, step).run();
}

}  // namespace diffqkv
