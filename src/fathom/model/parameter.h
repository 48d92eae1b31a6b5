// One named tensor of the model: fp32 master, what the kernels read, and its gradient.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "fathom/base/precision.h"
#include "fathom/kernels/linear/panel.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

enum class ParameterKind {
  kMatrix,  // panel layout; [N, K] in files
  kPlain,   // row-major fp32, any shape
  kTable,   // int32, never trained (tid2eid)
};

/// The form in which the kernels read a weight, and of the activations that meet it in a product.
enum class OperandFormat {
  kF32,        // as the master
  kBf16,       // rounded once
  kFp8Blocks,  // weight in FP8 blocks of 128 x 128, activation per token and 128 channels; sums are
               // cut at each 128 of the contraction
};

/// Ranks among which something of a parameter is divided (model/layout.h).
enum class ShardGroup { kNone, kTp, kEtp };

struct Parameter {
  std::string name;                   // official tensor name, "layers.0.attn.wq_a.weight"
  std::vector<int64_t> shape;         // of what this rank holds
  std::vector<int64_t> global_shape;  // as in files
  // Where the rank's part lies in the whole: `shape[shard_axis]` from shard_begin on, and the ranks
  // that have the other parts. kNone: all is here.
  int shard_axis = 0;
  int64_t shard_begin = 0;
  ShardGroup shard_group = ShardGroup::kNone;
  // Ranks with the same values, each of which adds the gradient of its own rows: the gradient is
  // the sum over them.
  ShardGroup gradient_group = ShardGroup::kNone;
  ParameterKind kind = ParameterKind::kPlain;
  PanelLayout panels;  // kMatrix
  DType export_dtype =
      DType::kBF16;            // BF16, or F32 for the keep list (sinks, ape, hc_*, gate.bias)
  bool has_gradient = true;    // false: indexer.*, gate.bias, tid2eid
  bool is_fp8_weight = false;  // in FP8 blocks in parity-fp8 and in FP8 checkpoints
  Precision precision = Precision::kFp32;
  Tensor master;             // fp32, [panels.size()] or `shape`; int32 for kTable
  Tensor compute;            // what kernels read, values of operand_format() held in fp32
  Tensor grad;               // fp32 like master; undefined until alloc_grad()
  Device* device = nullptr;  // where they lie; null: on the host

  int64_t numel() const;  // of `shape`, without panel padding
  int64_t global_numel() const;
  bool is_sharded() const { return shard_group != ShardGroup::kNone; }
  /// Keeps `count` of the axis from `begin` on: the part of one member of `group`. Before alloc().
  void cut(ShardGroup group, int axis, int64_t begin, int64_t count);
  /// This rank's part of a row-major tensor of global_shape, and back to its place there.
  template <typename T>
  void cut_from_global(const T* global, T* part) const;
  template <typename T>
  void put_into_global(const T* part, T* global) const;
  /// visit(i, g) for every element: the part's i-th is the whole's g-th, both row-major.
  template <typename Visit>
  void for_each_global_index(const Visit& visit) const;
  /// Allocates master (zeros) and makes compute from it.
  void alloc();
  /// Moves an allocated parameter there; matrices are row-major on a device.
  void move_to(Device* to);
  /// By the mode: tensors that files keep in F32 stay so in all modes, is_fp8_weight goes by blocks
  /// in parity-fp8, all others are BF16 in both parity modes.
  OperandFormat operand_format() const;
  /// Makes `compute` from `master`, each element rounded once to operand_format(); for kF32 they
  /// are one memory and nothing is copied. So a mode computes with the weights that an export
  /// writes. Errors: UserError that names the parameter when a value is not finite (kFp8Blocks).
  void refresh();
  void alloc_grad();  // zeros; nothing for parameters without gradient
  void zero_grad();

  const float* data() const { return compute.f32(); }  // for kernels
  float* grad_or_null() const { return grad.defined() ? grad.f32() : nullptr; }

  /// Row-major fp32 of `shape` in and out of the storage layout. kMatrix and kPlain only.
  void set_row_major(const float* values);
  void get_row_major(float* values) const;
  void get_grad_row_major(float* values) const;  // zeros when there is no gradient buffer
  /// The same for any tensor in the master's layout and place: a gradient, a moment.
  void store_row_major(const float* values, const Tensor& to) const;
  void load_row_major(const Tensor& from, float* values) const;

 private:
  /// The part as `count` runs of `width` elements, the first at `first` of the global tensor.
  struct PartRows {
    int64_t count, width, first, global_width;
  };
  PartRows part_rows() const;
};

template <typename T>
void Parameter::cut_from_global(const T* global, T* part) const {
  const PartRows rows = part_rows();
  for (int64_t i = 0; i < rows.count; ++i) {
    std::copy_n(global + rows.first + i * rows.global_width, rows.width, part + i * rows.width);
  }
}

template <typename T>
void Parameter::put_into_global(const T* part, T* global) const {
  const PartRows rows = part_rows();
  for (int64_t i = 0; i < rows.count; ++i) {
    std::copy_n(part + i * rows.width, rows.width, global + rows.first + i * rows.global_width);
  }
}

template <typename Visit>
void Parameter::for_each_global_index(const Visit& visit) const {
  const PartRows rows = part_rows();
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t i = 0; i < rows.width; ++i) {
      visit(r * rows.width + i, rows.first + r * rows.global_width + i);
    }
  }
}

Parameter make_matrix(std::string name, int64_t rows, int64_t cols, int64_t num_blocks = 1);
Parameter make_plain(std::string name, std::vector<int64_t> shape, DType export_dtype);
Parameter make_table(std::string name, std::vector<int64_t> shape);

}  // namespace fathom
