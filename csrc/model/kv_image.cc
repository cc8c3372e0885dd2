#include "model/kv_image.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace diffqkv {
namespace {

constexpr int64_t kPageTokens = KvPool::kPageTokens;

uint64_t k_layer_bytes(const Config& config, KvTypes types) {
  return static_cast<uint64_t>(kv_page_layer_bytes(types.k, kPageTokens, config.num_k_heads, config.head_dim_k));
}

uint64_t v_layer_bytes(const Config& config, KvTypes types) {
  if (config.is_latent()) return 0;
  return static_cast<uint64_t>(kv_page_layer_bytes(types.v, kPageTokens, config.num_v_heads, config.head_dim_vo));
}

}  // namespace

const char* page_layout_name(const Backend& backend) { return backend.info().kind == "cpu" ? "rows" : "panels"; }

uint64_t image_page_bytes(const Config& config, KvTypes types) {
  return static_cast<uint64_t>(config.num_layers) * (k_layer_bytes(config, types) + v_layer_bytes(config, types));
}

KvImage::KvImage(Model& model, const KvCache& cache, int64_t kv_len)
    : model_(model),
      cache_(cache),
      kv_len_(kv_len),
      k_layer_bytes_(k_layer_bytes(model.config(), cache.types())),
      v_layer_bytes_(v_layer_bytes(model.config(), cache.types())) {}

uint64_t KvImage::bytes() const {
  const uint64_t pages = cache_.pages().size() - static_cast<uint64_t>(cache_.first() / kPageTokens);
  return pages * image_page_bytes(model_.config(), cache_.types());
}

void KvImage::check(uint64_t offset, size_t count) const {
  const uint64_t total = bytes();
  if (offset <= total && count <= total - offset) return;
  fail(ErrorCode::invalid_argument, "offset is %llu and the array has %zu bytes; the pages have %llu bytes",
       static_cast<unsigned long long>(offset), count, static_cast<unsigned long long>(total));
}

template <typename Use>
void KvImage::for_each_piece(uint64_t offset, size_t bytes, Use use) {
  const auto num_layers = static_cast<uint64_t>(model_.config().num_layers);
  const uint64_t k_bytes = num_layers * k_layer_bytes_;
  const uint64_t page_bytes = k_bytes + num_layers * v_layer_bytes_;
  const uint64_t first_page = static_cast<uint64_t>(cache_.first() / kPageTokens);
  while (bytes > 0) {
    const uint64_t page = offset / page_bytes;
    const bool is_v = offset % page_bytes >= k_bytes;
    const uint64_t in_tensor = offset % page_bytes - (is_v ? k_bytes : 0);
    const uint64_t part_bytes = is_v ? v_layer_bytes_ : k_layer_bytes_;
    const auto layer = static_cast<int64_t>(in_tensor / part_bytes);
    const uint64_t in_layer = in_tensor % part_bytes;
    const KvPage& of = *cache_.pages()[first_page + page];
    const KvView view = is_v ? cache_.v_view(layer) : cache_.k_view(layer);
    const bool is_partial = first_page + page == static_cast<uint64_t>(kv_len_ / kPageTokens);
    const std::vector<uint8_t>& mask = is_v ? v_mask_ : k_mask_;
    Piece piece;
    piece.data = static_cast<uint8_t*>(is_v ? of.v : of.k) + view.page_offset + in_layer;
    piece.bytes = std::min<size_t>(bytes, part_bytes - in_layer);
    piece.mask = is_partial && !mask.empty() ? mask.data() + in_layer : nullptr;
    use(piece);
    offset += piece.bytes;
    bytes -= piece.bytes;
  }
}

void KvImage::read(uint64_t offset, uint8_t* out, size_t bytes) {
  check(offset, bytes);
  const bool reaches_last_page = bytes + offset + image_page_bytes(model_.config(), cache_.types()) > this->bytes();
  if (reaches_last_page && kv_len_ % kPageTokens != 0 && k_mask_.empty()) make_masks();
  for_each_piece(offset, bytes, [&](const Piece& piece) {
    model_.backend()->download(out, piece.data, piece.bytes);
    if (piece.mask) {
      for (size_t i = 0; i < piece.bytes; i++) out[i] &= piece.mask[i];
    }
    out += piece.bytes;
  });
}

void KvImage::write(uint64_t offset, const uint8_t* from, size_t bytes) {
  check(offset, bytes);
  for_each_piece(offset, bytes, [&](const Piece& piece) {
    model_.backend()->upload(piece.data, from, piece.bytes);
    from += piece.bytes;
  });
}

// Only kv_append knows where the rows of a page are. So it writes zero rows over a page of ones.
void KvImage::make_masks() {
  const std::shared_ptr<Backend>& backend = model_.backend();
  const auto filled = [&](size_t bytes, uint8_t value) {
    Buffer buffer(backend, bytes);
    const std::vector<uint8_t> values(bytes, value);
    backend->upload(buffer.data(), values.data(), bytes);
    return buffer;
  };
  const int64_t num_rows = kv_len_ % kPageTokens;
  KvView k = cache_.k_view(0), v = cache_.v_view(0);
  if (v_layer_bytes_ == 0) v.num_heads = 0;
  const int64_t row_elements = std::max(k.num_heads * k.head_dim, v.num_heads * v.head_dim);
  const Buffer zeros = filled(static_cast<size_t>(num_rows * row_elements) * sizeof(float), 0);
  const Buffer k_page = filled(k_layer_bytes_, 0xff), v_page = filled(v_layer_bytes_, 0xff);
  const KvPage page{k_page.data(), v_layer_bytes_ > 0 ? v_page.data() : k_page.data()};
  const Buffer table(backend, sizeof page);
  backend->upload(table.data(), &page, sizeof page);
  const KvPage* const table_address = table.as<KvPage>();
  const Buffer tables(backend, sizeof table_address);
  backend->upload(tables.data(), &table_address, sizeof table_address);
  std::vector<int32_t> rows(num_rows);
  std::iota(rows.begin(), rows.end(), 0);
  const Buffer positions(backend, rows.size() * sizeof(int32_t));
  backend->upload(positions.data(), rows.data(), rows.size() * sizeof(int32_t));

  KvAppendParams p;
  p.k = p.v = zeros.data();
  p.k_cache = k;
  p.v_cache = v;
  p.pages = tables.as<const KvPage*>();
  p.positions = positions.as<int32_t>();
  p.num_tokens = num_rows;
  p.max_kv_len = p.page_tokens = kPageTokens;
  backend->kv_append(p);

  const auto mask_of = [&](const Buffer& written) {
    std::vector<uint8_t> mask(written.bytes());
    backend->download(mask.data(), written.data(), mask.size());
    for (uint8_t& byte : mask) byte = static_cast<uint8_t>(~byte);
    return mask;
  };
  v_mask_ = mask_of(v_page);
  k_mask_ = mask_of(k_page);  // last: it says that both are there
}

}  // namespace diffqkv
