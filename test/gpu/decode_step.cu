// A whole decode step of a model: the launches of one token of every sequence through all layers, as csrc/model/forward.cc
// makes them, with weights and caches of the real size.
#include <cmath>
#include <numeric>

#include "timing.h"

namespace diffqkv::cuda {
namespace {

using driver::Case;
using driver::Result;

struct Model {
  const char* name;
  int64_t num_layers, hidden_size, head_dim, aug_q_size, intermediate_size, vocab_size;
  Heads heads;
};
constexpr Model kSigma15B = {"Sigma-1.5B", 26, 2048, 64, 3072, 6144, kSigmaVocabSize, kSigmaHeads};
constexpr Model kSigma10B = {"Sigma-10B", 32, 4096, 128, 6144, 14336, kSigmaVocabSize, kSigmaHeads};
constexpr Model kTiny = {"a tiny model", 1, 64, 32, 96, 128, 300, {8, 2, 4}};

constexpr int64_t kPageTokens = 64;

struct Gated {
  const void *gate, *up, *down;
};

struct Layer {
  const void *k, *v, *o;
  Gated query, ffn;
};

WeightView constant(const void* data) {
  WeightView view;
  view.data = data;
  view.dtype = kBf16;
  view.is_constant = true;
  return view;
}

size_t round_up(size_t bytes) { return (bytes + 255) / 256 * 256; }

class DecodeStep {
 public:
  DecodeStep(const Model& model, int64_t kv_len, int64_t batch)
      : m_(model),
        kv_len_(kv_len),
        batch_(batch),
        norm_(std::vector<float>(static_cast<size_t>(model.hidden_size), 1.0f)),
        residual_(count_of({batch, model.hidden_size})),
        q_(activations(q_size())),
        k_(activations(k_size())),
        v_(activations(v_size())),
        attention_(activations(q_size())),
        logits_(count_of({batch, model.vocab_size})),
        sample_rows_(std::vector<SampleRow>(static_cast<size_t>(batch))),
        sampled_(static_cast<size_t>(2 * batch)),
        tokens_(integers(7)),
        positions_(integers(static_cast<int32_t>(kv_len - 1))),
        kv_lens_(integers(static_cast<int32_t>(kv_len))),
        sequences_(counting(batch)),
        inv_freq_(frequencies(model.head_dim)) {
    place();  // finds how many bytes there are
    data_ = arena().get(placed_bytes_);
    place();
  }

  // Of one step: each weight and each cached row once.
  Work work() const { return {.bytes = static_cast<double>(weight_bytes_) + static_cast<double>(cached_bytes_)}; }
  int64_t num_launches() const { return 7 * m_.num_layers + 3; }

  void enqueue(Context& context) const {
    embed_tokens(context);
    for (int64_t i = 0; i < m_.num_layers; ++i) {
      const Layer& layer = layers_[static_cast<size_t>(i)];
      query_keys_values(layer, context);
      append(i, context);
      attend(i, context);
      add_product(attention_.data(), layer.o, q_size(), context);
      ffn(layer, context);
    }
    compute_logits(context);
    draw(context);
  }

  std::vector<float> logits() const { return logits_.values(); }

 private:
  int64_t q_size() const { return m_.heads.q * m_.head_dim; }
  int64_t k_size() const { return m_.heads.k * m_.head_dim; }
  int64_t v_size() const { return m_.heads.v * m_.head_dim; }
  Memory<uint8_t> activations(int64_t width) const { return Memory<uint8_t>(count_of({batch_, width}) * 2); }
  Memory<int32_t> integers(int32_t value) const {
    return Memory<int32_t>(std::vector<int32_t>(static_cast<size_t>(batch_), value));
  }
  static Memory<int32_t> counting(int64_t count) {
    std::vector<int32_t> values(static_cast<size_t>(count));
    std::iota(values.begin(), values.end(), 0);
    return Memory<int32_t>(values);
  }
  static Memory<double> frequencies(int64_t head_dim) {
    std::vector<double> values(static_cast<size_t>(head_dim / 2));
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::pow(50000.0, -2 * static_cast<double>(i) / static_cast<double>(head_dim));
    return Memory<double>(values);
  }

  // ---- Where weights and caches are in the arena, one behind the other.

  uint8_t* take(size_t bytes) {
    uint8_t* const at = data_ == nullptr ? nullptr : data_ + placed_bytes_;
    placed_bytes_ += round_up(bytes);
    return at;
  }
  const void* weight(int64_t rows, int64_t columns) {
    const size_t bytes = count_of({rows, columns}) * 2;
    weight_bytes_ += bytes;
    return take(bytes);
  }
  Gated gated_weights(int64_t in, int64_t inner, int64_t out) {
    const void* const gate = weight(inner, in);
    const void* const up = weight(inner, in);
    return {gate, up, weight(out, inner)};
  }

  void place() {
    placed_bytes_ = 0;
    weight_bytes_ = 0;
    layers_.clear();
    for (int64_t i = 0; i < m_.num_layers; ++i) {
      Layer layer;
      layer.k = weight(k_size(), m_.hidden_size);
      layer.v = weight(v_size(), m_.hidden_size);
      layer.query = gated_weights(m_.hidden_size, m_.aug_q_size, q_size());
      layer.o = weight(m_.hidden_size, q_size());
      layer.ffn = gated_weights(m_.hidden_size, m_.intermediate_size, m_.hidden_size);
      layers_.push_back(layer);
    }
    embedding_ = weight(m_.vocab_size, m_.hidden_size);  // the LM head as well

    const int64_t pages_of_sequence = (kv_len_ + kPageTokens - 1) / kPageTokens;
    k_layer_bytes_ = kv_page_layer_bytes(kBf16, kPageTokens, m_.heads.k, m_.head_dim);
    v_layer_bytes_ = kv_page_layer_bytes(kBf16, kPageTokens, m_.heads.v, m_.head_dim);
    const size_t num_pages = count_of({batch_, pages_of_sequence});
    const size_t k_page = count_of({m_.num_layers, k_layer_bytes_}), v_page = count_of({m_.num_layers, v_layer_bytes_});
    uint8_t* const k_pool = take(num_pages * k_page);
    uint8_t* const v_pool = take(num_pages * v_page);
    cached_bytes_ = count_of({batch_, kv_len_, m_.num_layers, m_.heads.k + m_.heads.v, m_.head_dim}) * 2;
    if (data_ == nullptr) return;
    std::vector<KvPage> pages(num_pages);
    for (size_t i = 0; i < num_pages; ++i) pages[i] = {k_pool + i * k_page, v_pool + i * v_page};
    pages_.emplace(pages);
    std::vector<const KvPage*> tables;
    for (int64_t b = 0; b < batch_; ++b) tables.push_back(pages_->data() + b * pages_of_sequence);
    tables_.emplace(tables);
  }

  // ---- The launches.

  void embed_tokens(Context& context) const {
    EmbedParams p;
    p.table = embedding_;
    p.tokens = tokens_.data();
    p.out = residual_.data();
    p.table_dtype = kBf16;
    p.num_tokens = batch_;
    p.vocab_size = m_.vocab_size;
    p.hidden_size = m_.hidden_size;
    embed(p, context);
  }

  // residual += x weight^T
  void add_product(const void* x, const void* weight, int64_t in, Context& context) const {
    MatmulParams p;
    p.x = x;
    p.weight = constant(weight);
    p.out = residual_.data();
    p.x_dtype = kBf16;
    p.num_tokens = batch_;
    p.in_features = in;
    p.out_features = m_.hidden_size;
    p.accumulate = true;
    matmul(p, context);
  }

  InputNorm norm() const { return {norm_.data(), 1e-5f}; }

  // Of the normalized residual stream.
  GatedMlpParams gated(const Gated& weights, int64_t inner) const {
    GatedMlpParams p;
    p.x = residual_.data();
    p.norm = norm();
    p.gate = constant(weights.gate);
    p.up = constant(weights.up);
    p.down = constant(weights.down);
    p.x_dtype = kBf16;
    p.num_tokens = batch_;
    p.in_features = m_.hidden_size;
    p.inner_size = inner;
    return p;
  }

  void query_keys_values(const Layer& layer, Context& context) const {
    GatedMlpParams p = gated(layer.query, m_.aug_q_size);
    p.out = q_.data();
    p.out_dtype = kBf16;
    p.out_features = q_size();
    p.others[0] = {constant(layer.k), k_.data(), k_size()};
    p.others[1] = {constant(layer.v), v_.data(), v_size()};
    p.num_others = 2;
    gated_mlp(p, context);
  }

  void ffn(const Layer& layer, Context& context) const {
    GatedMlpParams p = gated(layer.ffn, m_.intermediate_size);
    p.out = residual_.data();
    p.out_features = m_.hidden_size;
    p.accumulate = true;
    gated_mlp(p, context);
  }

  void append(int64_t layer, Context& context) const {
    KvAppendParams p;
    p.k = k_.data();
    p.v = v_.data();
    p.pages = tables_->data();
    p.sequences = sequences_.data();
    p.positions = positions_.data();
    p.inv_freq = inv_freq_.data();
    p.k_dtype = kBf16;
    p.v_dtype = kBf16;
    p.k_cache.dtype = kBf16;
    p.v_cache.dtype = kBf16;
    p.num_tokens = batch_;
    p.max_kv_len = kv_len_;
    p.k_cache.num_heads = m_.heads.k;
    p.v_cache.num_heads = m_.heads.v;
    p.k_cache.head_dim = m_.head_dim;
    p.v_cache.head_dim = m_.head_dim;
    p.page_tokens = kPageTokens;
    p.k_cache.page_offset = layer * k_layer_bytes_;
    p.v_cache.page_offset = layer * v_layer_bytes_;
    p.q.x = p.q.out = q_.data();
    p.q.positions = positions_.data();
    p.q.inv_freq = inv_freq_.data();
    p.q.dtype = kBf16;
    p.q.num_tokens = batch_;
    p.q.num_heads = m_.heads.q;
    p.q.head_dim = m_.head_dim;
    kv_append(p, context);
  }

  void attend(int64_t layer, Context& context) const {
    AttentionDecodeParams p;
    p.q = q_.data();
    p.out = attention_.data();
    p.kv_lens = kv_lens_.data();
    p.q_dtype = kBf16;
    p.k.dtype = kBf16;
    p.v.dtype = kBf16;
    p.out_dtype = kBf16;
    p.batch_size = batch_;
    p.kv_len = kv_len_;
    p.num_q_heads = m_.heads.q;
    p.k.num_heads = m_.heads.k;
    p.v.num_heads = m_.heads.v;
    p.k.head_dim = m_.head_dim;
    p.v.head_dim = m_.head_dim;
    p.pages = tables_->data();
    p.pages_shared = batch_ == 1;
    p.page_tokens = kPageTokens;
    p.k.page_offset = layer * k_layer_bytes_;
    p.v.page_offset = layer * v_layer_bytes_;
    p.sm_scale = 1 / std::sqrt(static_cast<float>(m_.head_dim));
    attention_decode(p, context);
  }

  void compute_logits(Context& context) const {
    MatmulParams p;
    p.x = residual_.data();
    p.norm = norm();
    p.weight = constant(embedding_);
    p.out = logits_.data();
    p.x_dtype = kBf16;
    p.num_tokens = batch_;
    p.in_features = m_.hidden_size;
    p.out_features = m_.vocab_size;
    matmul(p, context);
  }

  void draw(Context& context) const {
    SampleParams p;
    p.logits = logits_.data();
    p.rows = sample_rows_.data();
    p.out_tokens = sampled_.data();
    p.out_invalid = sampled_.data() + batch_;
    p.num_rows = batch_;
    p.vocab_size = m_.vocab_size;
    sample(p, context);
  }

  const Model m_;
  const int64_t kv_len_, batch_;
  const Memory<float> norm_, residual_;
  const Memory<uint8_t> q_, k_, v_, attention_;
  const Memory<float> logits_;
  const Memory<SampleRow> sample_rows_;  // greedy
  const Memory<int32_t> sampled_, tokens_, positions_, kv_lens_, sequences_;
  const Memory<double> inv_freq_;
  uint8_t* data_ = nullptr;  // null while the sizes are being added up
  size_t placed_bytes_ = 0, weight_bytes_ = 0, cached_bytes_ = 0;
  int64_t k_layer_bytes_ = 0, v_layer_bytes_ = 0;
  std::vector<Layer> layers_;
  const void* embedding_ = nullptr;
  std::optional<Memory<KvPage>> pages_;
  std::optional<Memory<const KvPage*>> tables_;
};

// What `calls` enqueue, as a graph. They have run before, so that they need no more memory.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& calls) : stream_(stream) {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    calls();
    cudaGraph_t graph = nullptr;
    check_cuda(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
    const cudaError_t status = cudaGraphInstantiate(&exec_, graph, 0);
    cudaGraphDestroy(graph);
    check_cuda(status, "cudaGraphInstantiate");
  }
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch() const { check_cuda(cudaGraphLaunch(exec_, stream_), "cudaGraphLaunch"); }

 private:
  const cudaStream_t stream_;
  cudaGraphExec_t exec_ = nullptr;
};

Case step_case(const Model& model, int64_t kv_len, int64_t batch, bool as_graph) {
  const std::string name = std::string("decode step of ") + model.name + ", kv " + std::to_string(kv_len) + ", batch " +
                           std::to_string(batch) + (as_graph ? ", as a graph" : "");
  return {name, [=]() -> Result {
            const DecodeStep step(model, kv_len, batch);
            TimingContext context(device_shape());
            std::optional<Graph> graph;
            if (as_graph) {
              step.enqueue(context);
              context.finish();
              const std::vector<float> launched = step.logits();
              graph.emplace(context.stream, [&] { step.enqueue(context); });
              graph->launch();
              context.finish();
              if (step.logits() != launched) return {"a graph has other logits than launches"};
            }
            const Timing timing = measure(context, [&](int64_t) { graph ? graph->launch() : step.enqueue(context); });
            context.finish();
            driver::Fields fields = timing_fields(timing, step.work());
            fields.push_back({"launches", std::to_string(step.num_launches())});
            fields.push_back({"tokensPerS", driver::json_number(1e6 * static_cast<double>(batch) / timing.us)});
            return {"", fields};
          }};
}

}  // namespace

std::vector<Case> decode_step_timings(bool small) {
  std::vector<Case> cases;
  for (const bool as_graph : {false, true}) {
    if (small) {
      for (const int64_t batch : {1, 2}) cases.push_back(step_case(kTiny, 100, batch, as_graph));
      continue;
    }
    for (const Model& model : {kSigma10B, kSigma15B}) {
      for (const int64_t kv_len : {4096, 32768}) cases.push_back(step_case(model, kv_len, 1, as_graph));
      cases.push_back(step_case(model, 4096, 8, as_graph));
    }
  }
  return cases;
}

}  // namespace diffqkv::cuda
