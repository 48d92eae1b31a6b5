#include "fathom/model/parameter.h"

#include <cstring>

#include "fathom/base/error.h"
#include "fathom/kernels/quant/quant.h"

namespace fathom {

int64_t Parameter::numel() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

void Parameter::alloc() {
  switch (kind) {
    case ParameterKind::kMatrix:
      master = Tensor::zeros({panels.size()});
      break;
    case ParameterKind::kPlain:
      master = Tensor::zeros(shape);
      break;
    case ParameterKind::kTable:
      master = Tensor::zeros(shape, DType::kI32);
      break;
  }
  refresh();
}

OperandFormat Parameter::operand_format() const {
  const bool is_kept = kind == ParameterKind::kTable || export_dtype != DType::kBF16;
  if (precision == Precision::kFp32 || is_kept) return OperandFormat::kF32;
  return precision == Precision::kParityFp8 && is_fp8_weight ? OperandFormat::kFp8Blocks
                                                             : OperandFormat::kBf16;
}

void Parameter::refresh() {
  const OperandFormat format = operand_format();
  if (format == OperandFormat::kF32) {
    compute = master;
    return;
  }
  if (!compute.defined() || compute.bytes() == master.bytes()) {
    compute = Tensor::empty(master.shape());
  }
  if (format == OperandFormat::kBf16) {
    round_bf16_serial(master.f32(), master.numel(), compute.f32());
  } else {
    with_context(name, [&] { simulate_fp8_panels(master.f32(), panels, compute.f32()); });
  }
}

void Parameter::alloc_grad() {
  if (has_gradient && !grad.defined()) grad = Tensor::zeros(master.shape());
}

void Parameter::zero_grad() {
  if (grad.defined()) std::memset(grad.bytes(), 0, static_cast<size_t>(grad.num_bytes()));
}

void Parameter::set_row_major(const float* values) {
  FATHOM_ASSERT(kind != ParameterKind::kTable && master.defined(), name);
  if (kind == ParameterKind::kMatrix) {
    pack_panels(values, panels, master.f32());
  } else {
    std::memcpy(master.f32(), values, static_cast<size_t>(master.num_bytes()));
  }
  refresh();
}

void Parameter::get_row_major(float* values) const {
  FATHOM_ASSERT(kind != ParameterKind::kTable && master.defined(), name);
  if (kind == ParameterKind::kMatrix) {
    unpack_panels(master.f32(), panels, values);
  } else {
    std::memcpy(values, master.f32(), static_cast<size_t>(master.num_bytes()));
  }
}

void Parameter::get_grad_row_major(float* values) const {
  if (!grad.defined()) {
    std::memset(values, 0, static_cast<size_t>(numel()) * sizeof(float));
  } else if (kind == ParameterKind::kMatrix) {
    unpack_panels(grad.f32(), panels, values);
  } else {
    std::memcpy(values, grad.f32(), static_cast<size_t>(grad.num_bytes()));
  }
}

Parameter make_matrix(std::string name, int64_t rows, int64_t cols, int64_t num_blocks) {
  Parameter p;
  p.name = std::move(name);
  p.shape = {rows, cols};
  p.kind = ParameterKind::kMatrix;
  p.panels = {rows, cols, num_blocks};
  return p;
}

Parameter make_plain(std::string name, std::vector<int64_t> shape, DType export_dtype) {
  Parameter p;
  p.name = std::move(name);
  p.shape = std::move(shape);
  p.export_dtype = export_dtype;
  return p;
}

Parameter make_table(std::string name, std::vector<int64_t> shape) {
  Parameter p;
  p.name = std::move(name);
  p.shape = std::move(shape);
  p.kind = ParameterKind::kTable;
  p.export_dtype = DType::kI64;
  p.has_gradient = false;
  return p;
}

}  // namespace fathom
