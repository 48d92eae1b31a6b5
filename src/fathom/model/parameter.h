// One named tensor of the model: fp32 master, what the kernels read, and its gradient.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "fathom/kernels/linear/panel.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

enum class ParameterKind {
  kMatrix,  // panel layout; [N, K] in files
  kPlain,   // row-major fp32, any shape
  kTable,   // int32, never trained (tid2eid)
};

struct Parameter {
  std::string name;            // official tensor name, "layers.0.attn.wq_a.weight"
  std::vector<int64_t> shape;  // as in files
  ParameterKind kind = ParameterKind::kPlain;
  PanelLayout panels;  // kMatrix
  DType export_dtype =
      DType::kBF16;          // BF16, or F32 for the keep list (sinks, ape, hc_*, gate.bias)
  bool has_gradient = true;  // false: indexer.*, gate.bias, tid2eid
  Tensor master;             // fp32, [panels.size()] or `shape`; int32 for kTable
  Tensor compute;            // what kernels read; in fp32 mode the same memory as master
  Tensor grad;               // fp32 like master; undefined until alloc_grad()

  int64_t numel() const;  // of `shape`, without panel padding
  /// Allocates master (zeros) and makes compute from it.
  void alloc();
  /// Makes `compute` from `master`: in fp32 mode they are one memory and nothing is copied.
  void refresh();
  void alloc_grad();  // zeros; nothing for parameters without gradient
  void zero_grad();

  const float* data() const { return compute.f32(); }  // for kernels
  float* grad_or_null() const { return grad.defined() ? grad.f32() : nullptr; }

  /// Row-major fp32 of `shape` in and out of the storage layout. kMatrix and kPlain only.
  void set_row_major(const float* values);
  void get_row_major(float* values) const;
  void get_grad_row_major(float* values) const;  // zeros when there is no gradient buffer
};

Parameter make_matrix(std::string name, int64_t rows, int64_t cols, int64_t num_blocks = 1);
Parameter make_plain(std::string name, std::vector<int64_t> shape, DType export_dtype);
Parameter make_table(std::string name, std::vector<int64_t> shape);

}  // namespace fathom
