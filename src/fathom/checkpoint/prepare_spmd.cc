#include "fathom/checkpoint/prepare_spmd.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <optional>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/base/hash.h"
#include "fathom/base/log.h"
#include "fathom/checkpoint/dcp_common.h"
#include "fathom/checkpoint/dcp_weights.h"
#include "fathom/checkpoint/dcp_writer.h"
#include "fathom/checkpoint/megatron_names.h"

namespace fathom {
namespace {

constexpr const char* kRelease = "release";
constexpr int64_t kSplitParts = 8;
constexpr int64_t kPageAlignedFrom = 64 << 10;

// The dimension along which Megatron's tensor parallelism cuts a tensor outside the routed experts.
std::optional<int> tensor_parallel_axis(const std::string& name) {
  const auto ends = [&](std::string_view tail) { return name.ends_with(tail); };
  if (name == "embed.weight" || name == "head.weight") return 0;
  if (ends(".attn.wq_b.weight") || ends(".attn.wo_a.weight")) return 0;
  if (ends(".shared_experts.w1.weight") || ends(".shared_experts.w3.weight")) return 0;
  if (ends(".attn.wo_b.weight") || ends(".shared_experts.w2.weight")) return 1;
  return std::nullopt;
}

uint16_t round_to_bf16(float value) {  // to nearest, ties to even; finite values only
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

// One official tensor on its way from the source to boxes of the target.
class TensorWriter {
 public:
  TensorWriter(const ExecContext& ctx, const ModelTensors& source, const Parameter& parameter,
               const PrepareSpmdOptions& options, DcpWriter& out)
      : ctx_(ctx),
        options_(options),
        parameter_(parameter),
        rows_(source.source(parameter.name)),
        num_experts_(source.config().n_routed_experts),
        slice_(megatron_slice(parameter.name, parameter.shape, num_experts_)),
        cols_(rows_.num_rows > 0 ? parameter.numel() / rows_.num_rows : 0),
        out_(out) {}

  const MegatronSlice& slice() const { return slice_; }
  bool rounds() const {
    return slice_.dtype == DType::kBF16 && rows_.tensor->dtype != DType::kBF16;
  }

  /// @return number of boxes.
  int64_t run() {
    if (slice_.dtype == DType::kI32) {
      std::vector<int32_t> table(static_cast<size_t>(parameter_.numel()));
      decode_expert_table(*rows_.tensor, num_experts_, table.data());
      out_.add_chunk(slice_.key, slice_.dtype, slice_.shape, slice_.offsets, slice_.sizes,
                     table.data());
      return 1;
    }
    const std::optional<int> axis = tensor_parallel_axis(parameter_.name);
    const bool split = axis && parameter_.shape.size() == 2 &&
                       rows_.num_rows == parameter_.shape[0] &&
                       parameter_.numel() * dtype_size(slice_.dtype) >= options_.split_from_bytes &&
                       parameter_.shape[static_cast<size_t>(*axis)] % kSplitParts == 0;
    if (!split) {
      add(slice_.offsets, slice_.sizes, 0, rows_.num_rows, 0, cols_);
      return 1;
    }
    const auto d = static_cast<size_t>(*axis);
    const int64_t part = slice_.sizes[d] / kSplitParts;
    for (int64_t i = 0; i < kSplitParts; ++i) {
      std::vector<int64_t> offsets = slice_.offsets, sizes = slice_.sizes;
      offsets[d] += i * part;
      sizes[d] = part;
      if (d == 0) {
        add(offsets, sizes, i * part, (i + 1) * part, 0, cols_);
      } else {
        add(offsets, sizes, 0, rows_.num_rows, i * part, (i + 1) * part);
      }
    }
    return kSplitParts;
  }

 private:
  // The box of rows and columns of the official tensor, piece by piece.
  void add(const std::vector<int64_t>& offsets, const std::vector<int64_t>& sizes,
           int64_t row_begin, int64_t row_end, int64_t col_begin, int64_t col_end) {
    const auto elements = [&](const ByteSink& sink) {
      const int64_t item = dtype_size(slice_.dtype);
      const int64_t step =
          std::max<int64_t>(1, options_.piece_bytes / std::max<int64_t>(1, cols_ * 4));
      for (int64_t r = row_begin; r < row_end; r += step) {
        const int64_t n = std::min(step, row_end - r);
        decode(r, n);
        if (col_begin == 0 && col_end == cols_) {
          sink(piece_.data(), n * cols_ * item);
          continue;
        }
        const int64_t width = (col_end - col_begin) * item;
        for (int64_t i = 0; i < n; ++i) {
          uint8_t* to = piece_.data() + i * width;
          const uint8_t* from = piece_.data() + (i * cols_ + col_begin) * item;
          std::copy(from, from + width, to);  // never overtakes what is still to be read
        }
        sink(piece_.data(), n * width);
      }
    };
    out_.add_chunk(slice_.key, slice_.dtype, slice_.shape, offsets, sizes, elements);
  }

  // Rows [begin, begin + count) in the target's element type, into piece_.
  void decode(int64_t begin, int64_t count) {
    const int64_t n = count * cols_, first = rows_.first_row + begin;
    piece_.resize(static_cast<size_t>(n * dtype_size(slice_.dtype)));
    if (slice_.dtype == DType::kBF16 && rows_.tensor->dtype == DType::kBF16) {
      auto* values = reinterpret_cast<uint16_t*>(piece_.data());
      decode_rows(ctx_, *rows_.tensor, first, first + count, values);
      for (int64_t i = 0; i < n; ++i) check_finite((values[i] & 0x7F80u) != 0x7F80u, begin, i);
      return;
    }
    float* values = nullptr;
    if (slice_.dtype == DType::kF32) {
      values = reinterpret_cast<float*>(piece_.data());
    } else {
      wide_.resize(static_cast<size_t>(n));
      values = wide_.data();
    }
    decode_rows_f32(ctx_, *rows_.tensor, first, first + count, values);
    for (int64_t i = 0; i < n; ++i) check_finite(std::isfinite(values[i]), begin, i);
    if (slice_.dtype == DType::kF32) return;
    auto* rounded = reinterpret_cast<uint16_t*>(piece_.data());
    for (int64_t i = 0; i < n; ++i) rounded[i] = round_to_bf16(values[i]);
  }

  void check_finite(bool finite, int64_t row, int64_t i) const {
    if (finite) [[likely]]
      return;
    throw UserError(str_cat(rows_.tensor->weight.describe(), ": element ", row * cols_ + i, " of ",
                            parameter_.name, " is NaN or infinite",
                            "\n  fix: this checkpoint is damaged; fetch or convert it again"));
  }

  const ExecContext& ctx_;
  const PrepareSpmdOptions& options_;
  const Parameter& parameter_;
  const ModelTensors::Source& rows_;
  int64_t num_experts_;
  MegatronSlice slice_;
  int64_t cols_;
  DcpWriter& out_;
  std::vector<uint8_t> piece_;
  std::vector<float> wide_;
};

void check_space(const std::string& out_dir, int64_t num_bytes) {
  make_directories(out_dir);
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(out_dir, error);
  if (error) return;  // not every file system tells; writing will
  const auto available = static_cast<int64_t>(std::min<uint64_t>(space.available, INT64_MAX));
  FATHOM_CHECK(available >= num_bytes, "prepare-spmd: ", out_dir, " has ", available,
               " bytes free, the weights need ", num_bytes,
               "\n  fix: free space there, or give another directory with --save");
}

}  // namespace

PrepareSpmdResult prepare_spmd(const ExecContext& ctx, const ModelTensors& source,
                               const std::string& out_dir, const PrepareSpmdOptions& options) {
  PrepareSpmdResult result;
  if (const std::optional<std::string> tracker = read_tracker(out_dir)) {
    FATHOM_CHECK(*tracker == kRelease, tracker_path(out_dir), " names step ", *tracker,
                 ": the directory holds the checkpoints of a training run",
                 "\n  fix: give another directory with --save");
    resolve_checkpoint(out_dir);  // says so when the directory is not whole
    result.was_there = true;
    return result;
  }

  const Weights model = make_weights(source.config());
  struct Item {
    const Parameter* parameter;
    std::string file;
    const uint8_t* data;
    int64_t row;
  };
  std::vector<Item> items;
  int64_t total_bytes = 0;
  for_each_parameter(model, [&](const Parameter& p) {
    const ModelTensors::Source& s = source.source(p.name);
    items.push_back({&p, s.tensor->weight.file->path(), s.tensor->weight.data(), s.first_row});
    total_bytes +=
        p.numel() *
        dtype_size(megatron_slice(p.name, p.shape, source.config().n_routed_experts).dtype);
  });
  // In the order of the source's bytes: both sides are then read and written from front to back.
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return std::tie(a.file, a.data, a.row) < std::tie(b.file, b.data, b.row);
  });
  check_space(out_dir, total_bytes);

  PendingDirectory pending(out_dir, kRelease);
  DcpWriter::Options writing;
  writing.page_aligned_from = kPageAlignedFrom;
  DcpWriter writer(pending, writing);
  for (const Item& item : items) {
    TensorWriter tensor(ctx, source, *item.parameter, options, writer);
    result.num_chunks += tensor.run();
    ++result.num_tensors;
    if (tensor.rounds()) ++result.num_rounded;
    if (tensor.slice().dtype == DType::kF32) ++result.num_kept_fp32;
  }
  Json args = megatron_args(source.config());
  args["bf16"] = true;
  const std::string save_id =
      sha256_hex(str_cat(args.dump(), source.directory(), total_bytes)).substr(0, 32);
  write_dcp_headers(pending, writer.finish(), kRelease, save_id,
                    encode_common_pt(args, /*iteration=*/1, /*with_optimizer=*/false));
  pending.publish();
  write_file_atomic(tracker_path(out_dir), kRelease);
  result.num_bytes = writer.num_bytes();

  log_info("prepare-spmd: ", result.num_tensors, " tensors in ", result.num_chunks, " pieces, ",
           result.num_bytes, " bytes, in ", join_path(out_dir, kRelease));
  log_info("prepare-spmd: ", result.num_kept_fp32,
           " tensors kept in F32 (attn_sink, ape, hc_*, gate.bias), all others are BF16; ",
           result.num_rounded,
           " F32 or F16 tensors of the source were rounded for that; "
           "vocabulary of ",
           source.config().vocab_size, " not padded");
  return result;
}

}  // namespace fathom
