#include "fathom/kernels/linear/panel.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {
namespace {

void check_layout(const PanelLayout& layout) {
  FATHOM_ASSERT(layout.rows >= 0 && layout.cols >= 0 && layout.num_blocks >= 1 &&
                    layout.rows % layout.num_blocks == 0 && layout.panel_rows == kPanelRows,
                "rows = ", layout.rows, ", cols = ", layout.cols,
                ", num_blocks = ", layout.num_blocks, ", panel_rows = ", layout.panel_rows);
}

}  // namespace

void pack_panels(const float* row_major, const PanelLayout& layout, float* panels) {
  check_layout(layout);
  const int64_t K = layout.cols;
  for (int64_t block = 0; block < layout.num_blocks; ++block) {
    for (int64_t p = 0; p < layout.panels_per_block(); ++p) {
      const int64_t first = p * kPanelRows;
      const int64_t rows = std::min(kPanelRows, layout.block_rows() - first);
      const float* in = row_major + (block * layout.block_rows() + first) * K;
      float* out = panels + block * layout.block_size() + first * K;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t r = 0; r < kPanelRows; ++r) {
          out[k * kPanelRows + r] = r < rows ? in[r * K + k] : 0.0f;
        }
      }
    }
  }
}

void unpack_panels(const float* panels, const PanelLayout& layout, float* row_major) {
  check_layout(layout);
  const int64_t K = layout.cols;
  for (int64_t block = 0; block < layout.num_blocks; ++block) {
    for (int64_t p = 0; p < layout.panels_per_block(); ++p) {
      const int64_t first = p * kPanelRows;
      const int64_t rows = std::min(kPanelRows, layout.block_rows() - first);
      const float* in = panels + block * layout.block_size() + first * K;
      float* out = row_major + (block * layout.block_rows() + first) * K;
      for (int64_t k = 0; k < K; ++k) {
        for (int64_t r = 0; r < rows; ++r) out[r * K + k] = in[k * kPanelRows + r];
      }
    }
  }
}

}  // namespace fathom
