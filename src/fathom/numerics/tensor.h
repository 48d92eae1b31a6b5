// A contiguous, row-major, shaped piece of memory, on the host or on a device. Copying a Tensor
// shares the memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "fathom/base/exec_context.h"
#include "fathom/numerics/dtype.h"

namespace fathom {

class Tensor {
 public:
  Tensor() = default;  // no elements; defined() is false

  /// Fresh memory, 64-byte aligned. empty() leaves it unset, zeros() clears it.
  static Tensor empty(std::vector<int64_t> shape, DType dtype = DType::kF32);
  static Tensor zeros(std::vector<int64_t> shape, DType dtype = DType::kF32);
  /// Where the context computes.
  static Tensor empty(const ExecContext& ctx, std::vector<int64_t> shape,
                      DType dtype = DType::kF32);
  static Tensor zeros(const ExecContext& ctx, std::vector<int64_t> shape,
                      DType dtype = DType::kF32);
  static Tensor empty_on(Device* device, std::vector<int64_t> shape, DType dtype = DType::kF32);
  static Tensor zeros_on(Device* device, std::vector<int64_t> shape, DType dtype = DType::kF32);
  /// A view of foreign memory, which must outlive every copy of the Tensor.
  static Tensor view(void* data, std::vector<int64_t> shape, DType dtype = DType::kF32);

  bool defined() const { return data_ != nullptr || storage_ != nullptr; }
  DType dtype() const { return dtype_; }
  const std::vector<int64_t>& shape() const { return shape_; }
  int64_t dim(int i) const { return shape_[static_cast<size_t>(i)]; }
  int64_t numel() const { return numel_; }
  int64_t num_bytes() const { return numel_ * dtype_size(dtype_); }

  Device* device() const { return device_; }  // null: memory of the host
  /// This tensor when it is on the host already, else a copy there. Waits for the device.
  Tensor to_host() const;
  /// A copy in fresh memory of `device` (null: of the host).
  Tensor copy_to(Device* device) const;

  /// The elements; the type must be the dtype's (checked). On a device, for kernels only. Shared
  /// with every copy of this Tensor.
  float* f32() const;
  int32_t* i32() const;
  int64_t* i64() const;
  uint16_t* u16() const;                                           // BF16 or F16 bits
  uint8_t* bytes() const { return static_cast<uint8_t*>(data_); }  // any dtype

  /// The same memory with another shape of equal size.
  Tensor reshape(std::vector<int64_t> shape) const;
  /// Rows [begin, end) of the first dimension, same memory.
  Tensor rows(int64_t begin, int64_t end) const;
  /// A copy in fresh memory of the same place.
  Tensor clone() const;

  std::string shape_string() const;  // "[3, 128]"

 private:
  std::shared_ptr<void> storage_;
  Device* device_ = nullptr;
  void* data_ = nullptr;
  std::vector<int64_t> shape_;
  int64_t numel_ = 0;
  DType dtype_ = DType::kF32;
};

std::string shape_to_string(const std::vector<int64_t>& shape);

}  // namespace fathom
