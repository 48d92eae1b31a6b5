#include "fathom/model/parameter.h"

#include <cstring>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/kernels/quant/quant.h"

namespace fathom {

int64_t Parameter::numel() const {
  int64_t n = 1;
  for (int64_t d : shape) n *= d;
  return n;
}

int64_t Parameter::global_numel() const {
  int64_t n = 1;
  for (int64_t d : global_shape) n *= d;
  return n;
}

void Parameter::cut(ShardGroup group, int axis, int64_t begin, int64_t count) {
  const auto a = static_cast<size_t>(axis);
  FATHOM_ASSERT(!master.defined() && !is_sharded() && begin + count <= global_shape[a], name, ": ",
                count, " from ", begin, " on");
  shard_group = group;
  shard_axis = axis;
  shard_begin = begin;
  shape[a] = count;
  if (kind != ParameterKind::kMatrix) return;
  if (axis == 0) {
    const int64_t block = panels.block_rows();  // whole blocks stay blocks
    FATHOM_ASSERT(panels.num_blocks == 1 || (begin % block == 0 && count % block == 0), name);
    if (panels.num_blocks > 1) panels.num_blocks = count / block;
    panels.rows = count;
  } else {
    panels.cols = count;
  }
}

Parameter::PartRows Parameter::part_rows() const {
  // In front of the axis, the axis and all behind it.
  int64_t before = 1, behind = 1;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (static_cast<int>(d) < shard_axis) before *= shape[d];
    if (static_cast<int>(d) > shard_axis) behind *= shape[d];
  }
  const auto a = static_cast<size_t>(shard_axis);
  return {before, shape[a] * behind, shard_begin * behind, global_shape[a] * behind};
}

void Parameter::alloc() {
  switch (kind) {
    case ParameterKind::kMatrix:
      master = Tensor::zeros_on(device, {panels.size()});
      break;
    case ParameterKind::kPlain:
      master = Tensor::zeros_on(device, shape);
      break;
    case ParameterKind::kTable:
      master = Tensor::zeros_on(device, shape, DType::kI32);
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
    compute = Tensor::empty_on(device, master.shape());
  }
  // Kernels on the CPU would share the work out; here whole parameters are.
  const ExecContext on_device{nullptr, CpuIsa::kAvx2, device};
  if (format == OperandFormat::kFp8Blocks) {
    with_context(name,
                 [&] { simulate_fp8_matrix(on_device, master.f32(), panels, compute.f32()); });
  } else if (device != nullptr) {
    round_bf16(on_device, master.f32(), master.numel(), compute.f32());
  } else {
    round_bf16_serial(master.f32(), master.numel(), compute.f32());
  }
}

void Parameter::alloc_grad() {
  if (has_gradient && !grad.defined()) grad = Tensor::zeros_on(device, master.shape());
}

void Parameter::zero_grad() {
  if (grad.defined()) {
    clear_memory(device, grad.bytes(), static_cast<size_t>(grad.num_bytes()));
  }
}

void Parameter::move_to(Device* to) {
  if (to == device) return;
  Tensor rows = master.to_host();
  if (kind == ParameterKind::kMatrix) {
    rows = Tensor::empty({numel()});
    load_row_major(master, rows.f32());
  }
  FATHOM_ASSERT(!grad.defined(), name, " has a gradient where it was");
  device = to;
  panels.panel_rows = to == nullptr ? kPanelRows : 1;
  compute = Tensor();
  if (kind == ParameterKind::kMatrix) {
    master = Tensor::empty_on(device, {panels.size()});
    store_row_major(rows.f32(), master);
  } else {
    master = rows.copy_to(device);
  }
  refresh();
}

void Parameter::store_row_major(const float* values, const Tensor& to) const {
  if (kind == ParameterKind::kMatrix && device == nullptr) {
    pack_panels(values, panels, to.f32());
  } else {
    upload_memory(device, to.f32(), values, static_cast<size_t>(to.num_bytes()));
  }
}

void Parameter::load_row_major(const Tensor& from, float* values) const {
  if (kind == ParameterKind::kMatrix && device == nullptr) {
    unpack_panels(from.f32(), panels, values);
  } else {
    download_memory(device, values, from.f32(), static_cast<size_t>(from.num_bytes()));
  }
}

void Parameter::set_row_major(const float* values) {
  FATHOM_ASSERT(kind != ParameterKind::kTable && master.defined(), name);
  store_row_major(values, master);
  refresh();
}

void Parameter::get_row_major(float* values) const {
  FATHOM_ASSERT(kind != ParameterKind::kTable && master.defined(), name);
  load_row_major(master, values);
}

void Parameter::get_grad_row_major(float* values) const {
  if (!grad.defined()) {
    std::memset(values, 0, static_cast<size_t>(numel()) * sizeof(float));
  } else {
    load_row_major(grad, values);
  }
}

Parameter make_matrix(std::string name, int64_t rows, int64_t cols, int64_t num_blocks) {
  Parameter p;
  p.name = std::move(name);
  p.shape = p.global_shape = {rows, cols};
  p.kind = ParameterKind::kMatrix;
  p.panels = {rows, cols, num_blocks};
  return p;
}

Parameter make_plain(std::string name, std::vector<int64_t> shape, DType export_dtype) {
  Parameter p;
  p.name = std::move(name);
  p.shape = p.global_shape = std::move(shape);
  p.export_dtype = export_dtype;
  return p;
}

Parameter make_table(std::string name, std::vector<int64_t> shape) {
  Parameter p;
  p.name = std::move(name);
  p.shape = p.global_shape = std::move(shape);
  p.kind = ParameterKind::kTable;
  p.export_dtype = DType::kI64;
  p.has_gradient = false;
  return p;
}

}  // namespace fathom
