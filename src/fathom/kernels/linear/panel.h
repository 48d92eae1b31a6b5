// The layout of a weight matrix in memory: panels of 16 output rows.
//
// A matrix W [N outputs, K inputs] is cut into `num_blocks` blocks of N/num_blocks rows (1 for all
// but wo_a, whose groups are blocks). In a block, panel p holds rows 16p .. 16p+15, stored [K][16]:
// element (n, k) of a block lies at (n/16)·K·16 + k·16 + n%16. A last panel is padded with zeros.
// The forward product loads 16 outputs at one k with one vector load, for any number of tokens.
// Masters, gradients and Adam moments all use this layout; files are row-major. On a device
// panels have one row (panel_rows = 1): the matrix is row-major there too, without padding.
#pragma once

#include <cstdint>

namespace fathom {

constexpr int64_t kPanelRows = 16;

struct PanelLayout {
  int64_t rows = 0;        // N, all blocks together
  int64_t cols = 0;        // K
  int64_t num_blocks = 1;  // divides rows
  int64_t panel_rows = kPanelRows;

  int64_t block_rows() const { return rows / num_blocks; }
  int64_t panels_per_block() const { return (block_rows() + panel_rows - 1) / panel_rows; }
  int64_t block_size() const { return panels_per_block() * cols * panel_rows; }  // floats
  int64_t size() const { return num_blocks * block_size(); }                     // floats
  int64_t index(int64_t n, int64_t k) const {
    const int64_t block = n / block_rows(), r = n % block_rows();
    return block * block_size() + (r / panel_rows) * cols * panel_rows + k * panel_rows +
           r % panel_rows;
  }
};

/// Row-major [rows, cols] -> panels of 16 rows (padding zeroed), and back.
void pack_panels(const float* row_major, const PanelLayout& layout, float* panels);
void unpack_panels(const float* panels, const PanelLayout& layout, float* row_major);

}  // namespace fathom
