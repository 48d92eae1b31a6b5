#include "fathom/checkpoint/fill_weights.h"

#include <algorithm>
#include <vector>

#include "fathom/base/device.h"

namespace fathom {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;
constexpr int64_t kRowStep = 128;  // whole panels, and whole FP8 blocks

struct Piece {
  Parameter* parameter;
  int64_t begin, end;  // rows
};

int64_t num_rows(const Parameter& p) { return p.shape.size() == 2 ? p.shape[0] : 1; }

// Whether rows from a multiple of a panel's on can be stored without the rows before them.
bool is_stored_by_rows(const Parameter& p) {
  return p.kind == ParameterKind::kMatrix && p.device == nullptr &&
         (p.panels.num_blocks == 1 || p.panels.block_rows() % kPanelRows == 0);
}

// Rows [begin, end) of this rank's part.
void read_part(const Parameter& p, int64_t begin, int64_t end, const WeightsReader& reader,
               float* out) {
  const bool has_all_columns = p.shape.back() == p.global_shape.back();
  const bool is_by_rows = p.shape.size() == 2 && p.shard_axis == 0;
  const int64_t first = is_by_rows ? p.shard_begin : 0;
  if (has_all_columns) return reader.rows(p, first + begin, first + end, out);
  // Whole rows are read, of which some columns are kept; a divided vector is a row.
  const int64_t wide = p.global_shape.back(), width = p.shape.back();
  std::vector<float> rows(static_cast<size_t>((end - begin) * wide));
  reader.rows(p, begin, end, rows.data());
  for (int64_t r = 0; r < end - begin; ++r) {
    std::copy_n(rows.data() + r * wide + p.shard_begin, width, out + r * width);
  }
}

void fill(const Piece& piece, const WeightsReader& reader) {
  Parameter& p = *piece.parameter;
  if (p.kind == ParameterKind::kTable) {
    std::vector<int32_t> ids(static_cast<size_t>(p.numel()));
    reader.table(p, ids.data());
    upload_memory(p.device, p.master.i32(), ids.data(), ids.size() * sizeof(int32_t));
    return;
  }
  const int64_t rows = piece.end - piece.begin;
  const int64_t cols = num_rows(p) > 0 ? p.numel() / num_rows(p) : 0;
  std::vector<float> values(static_cast<size_t>(rows * cols));
  read_part(p, piece.begin, piece.end, reader, values.data());
  if (!is_stored_by_rows(p)) {
    p.store_row_major(values.data(), p.master);
    return;
  }
  PanelLayout part;
  part.rows = rows;
  part.cols = cols;
  pack_panels(values.data(), part, p.master.f32() + piece.begin * cols);
}

}  // namespace

void fill_weights(const ExecContext& ctx, Weights* weights, const WeightsReader& reader) {
  std::vector<Parameter*> parameters;
  std::vector<Piece> pieces;
  for_each_parameter(*weights, [&](Parameter& p) {
    parameters.push_back(&p);
    const int64_t rows = num_rows(p);
    int64_t step = rows;
    if (is_stored_by_rows(p) && rows > 0) {
      const int64_t fit = kPieceBytes / std::max<int64_t>(1, 4 * (p.numel() / rows));
      step = std::max<int64_t>(1, fit / kRowStep) * kRowStep;
    }
    for (int64_t row = 0; row < rows; row += step) {
      pieces.push_back({&p, row, std::min(rows, row + step)});
    }
  });
  // A device takes one piece at a time.
  const bool on_device = !parameters.empty() && parameters[0]->device != nullptr;
  const auto in_parallel = [&](size_t count, const auto& body) {
    const auto n = static_cast<int64_t>(count);
    ctx.threads->parallel_for(n, on_device ? std::max<int64_t>(n, 1) : 1,
                              [&](int64_t begin, int64_t end) {
                                for (int64_t i = begin; i < end; ++i) body(static_cast<size_t>(i));
                              });
  };
  in_parallel(pieces.size(), [&](size_t i) { fill(pieces[i], reader); });
  in_parallel(parameters.size(), [&](size_t i) { parameters[i]->refresh(); });
}

}  // namespace fathom
