// A small array made on the host that kernels read: indices of a batch, descriptors, pointers.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "fathom/base/device.h"
#include "fathom/base/exec_context.h"
#include "fathom/numerics/tensor.h"

namespace fathom {

/// The array as the host made it and, when the context has a device, a copy there.
template <typename T>
class KernelArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  KernelArray() = default;
  KernelArray(const ExecContext& ctx, std::vector<T> values) : host_(std::move(values)) {
    if (ctx.device == nullptr) return;
    const int64_t num_bytes = static_cast<int64_t>(host_.size() * sizeof(T));
    copy_ = Tensor::empty_on(ctx.device, {num_bytes}, DType::kU8);
    upload_memory(ctx.device, copy_.bytes(), host_.data(), static_cast<size_t>(num_bytes));
  }

  /// Where kernels of the context read it.
  const T* data() const {
    return copy_.defined() ? reinterpret_cast<const T*>(copy_.bytes()) : host_.data();
  }
  const std::vector<T>& host() const { return host_; }
  const T& operator[](int64_t i) const { return host_[static_cast<size_t>(i)]; }
  int64_t size() const { return static_cast<int64_t>(host_.size()); }

 private:
  std::vector<T> host_;
  Tensor copy_;
};

}  // namespace fathom
