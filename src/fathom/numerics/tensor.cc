#include "fathom/numerics/tensor.h"

#include <cstring>

#include "fathom/base/device.h"
#include "fathom/base/error.h"
#include "fathom/numerics/block_cache.h"

namespace fathom {
namespace {

constexpr size_t kReadBeyond = 64;  // a last vector may be read past the end

int64_t count_elements(const std::vector<int64_t>& shape) {
  int64_t n = 1;
  for (int64_t d : shape) {
    FATHOM_ASSERT(d >= 0, "negative dimension in ", shape_to_string(shape));
    FATHOM_ASSERT(!__builtin_mul_overflow(n, d, &n), "too many elements: ", shape_to_string(shape));
  }
  return n;
}

}  // namespace

Tensor Tensor::empty(std::vector<int64_t> shape, DType dtype) {
  Tensor t;
  t.numel_ = count_elements(shape);
  t.shape_ = std::move(shape);
  t.dtype_ = dtype;
  t.storage_ = acquire_block(static_cast<size_t>(t.num_bytes()) + kReadBeyond);
  t.data_ = t.storage_.get();
  return t;
}

Tensor Tensor::zeros(std::vector<int64_t> shape, DType dtype) {
  Tensor t = empty(std::move(shape), dtype);
  std::memset(t.data_, 0, static_cast<size_t>(t.num_bytes()));
  return t;
}

Tensor Tensor::empty_on(Device* device, std::vector<int64_t> shape, DType dtype) {
  if (device == nullptr) return empty(std::move(shape), dtype);
  Tensor t;
  t.numel_ = count_elements(shape);
  t.shape_ = std::move(shape);
  t.dtype_ = dtype;
  t.device_ = device;
  t.data_ = device->allocate(static_cast<size_t>(t.num_bytes()));
  t.storage_ = std::shared_ptr<void>(t.data_, [device](void* memory) { device->release(memory); });
  return t;
}

Tensor Tensor::zeros_on(Device* device, std::vector<int64_t> shape, DType dtype) {
  Tensor t = empty_on(device, std::move(shape), dtype);
  clear_memory(device, t.data_, static_cast<size_t>(t.num_bytes()));
  return t;
}

Tensor Tensor::empty(const ExecContext& ctx, std::vector<int64_t> shape, DType dtype) {
  return empty_on(ctx.device, std::move(shape), dtype);
}

Tensor Tensor::zeros(const ExecContext& ctx, std::vector<int64_t> shape, DType dtype) {
  return zeros_on(ctx.device, std::move(shape), dtype);
}

Tensor Tensor::to_host() const { return device_ == nullptr ? *this : copy_to(nullptr); }

Tensor Tensor::copy_to(Device* device) const {
  Tensor t = empty_on(device, shape_, dtype_);
  const size_t n = static_cast<size_t>(num_bytes());
  if (device_ == nullptr) {
    upload_memory(device, t.data_, data_, n);
  } else if (device == nullptr) {
    download_memory(device_, t.data_, data_, n);
  } else {
    copy_memory(device, t.data_, data_, n);
  }
  return t;
}

Tensor Tensor::view(void* data, std::vector<int64_t> shape, DType dtype) {
  Tensor t;
  t.numel_ = count_elements(shape);
  t.shape_ = std::move(shape);
  t.dtype_ = dtype;
  t.data_ = data;
  return t;
}

float* Tensor::f32() const {
  FATHOM_ASSERT(dtype_ == DType::kF32, "tensor is ", dtype_name(dtype_));
  return static_cast<float*>(data_);
}
int32_t* Tensor::i32() const {
  FATHOM_ASSERT(dtype_ == DType::kI32, "tensor is ", dtype_name(dtype_));
  return static_cast<int32_t*>(data_);
}
int64_t* Tensor::i64() const {
  FATHOM_ASSERT(dtype_ == DType::kI64, "tensor is ", dtype_name(dtype_));
  return static_cast<int64_t*>(data_);
}
uint16_t* Tensor::u16() const {
  FATHOM_ASSERT(dtype_ == DType::kBF16 || dtype_ == DType::kF16, "tensor is ", dtype_name(dtype_));
  return static_cast<uint16_t*>(data_);
}

Tensor Tensor::reshape(std::vector<int64_t> shape) const {
  Tensor t = *this;
  FATHOM_ASSERT(count_elements(shape) == numel_, "reshape of ", shape_string(), " to ",
                shape_to_string(shape));
  t.shape_ = std::move(shape);
  return t;
}

Tensor Tensor::rows(int64_t begin, int64_t end) const {
  FATHOM_ASSERT(!shape_.empty() && 0 <= begin && begin <= end && end <= shape_[0], "rows ", begin,
                " to ", end, " of ", shape_string());
  Tensor t = *this;
  const int64_t row = shape_[0] == 0 ? 0 : numel_ / shape_[0];
  t.shape_[0] = end - begin;
  t.numel_ = row * (end - begin);
  t.data_ = bytes() + begin * row * dtype_size(dtype_);
  return t;
}

Tensor Tensor::clone() const { return copy_to(device_); }

std::string Tensor::shape_string() const { return shape_to_string(shape_); }

std::string shape_to_string(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

}  // namespace fathom
