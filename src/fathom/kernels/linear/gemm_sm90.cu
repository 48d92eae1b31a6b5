#include <algorithm>

#include "fathom/kernels/linear/gemm_sm90.cuh"
#include "fathom/kernels/linear/gemm_sm90.h"
#include "fathom/kernels/sm90/tensor_map.h"

namespace fathom::sm90 {
namespace {

template <class C>
cudaError_t launch(const GemmSm90& p, cudaStream_t stream) {
  CUtensorMap map_a, map_w;
  const int elem = C::kFp8 ? 1 : 2;
  cudaError_t err =
      make_tensor_map_2d(&map_a, p.a, p.M, p.K, p.lda, elem, C::BM / C::kCluster, C::BK);
  if (err != cudaSuccess) return err;
  err = make_tensor_map_2d(&map_w, p.w, p.N * p.num_groups, p.K, p.ldw, elem, C::BN, C::BK);
  if (err != cudaSuccess) return err;

  int device = 0, num_sms = 0;
  err = cudaGetDevice(&device);
  if (err != cudaSuccess) return err;
  err = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  if (err != cudaSuccess) return err;
  const auto kernel = gemm_sm90_kernel<C>;
  err = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSmemBytes);
  if (err != cudaSuccess) return err;

  using Walk = TileWalk<C>;
  // Groups may each end in a partial unit.
  const int64_t row_units = (p.M + Walk::kUnitRows - 1) / Walk::kUnitRows + (p.num_groups - 1);
  const int64_t col_units = (p.N + Walk::kUnitCols - 1) / Walk::kUnitCols;
  const int64_t clusters = std::min<int64_t>(row_units * col_units, num_sms / C::kCluster);

  GemmArgs args{};
  args.d = p.d;
  args.a_scale = p.a_scale;
  args.w_scale = p.w_scale;
  args.group_begin = p.group_begin;
  args.ldd = p.ldd;
  args.a_scale_ld = p.a_scale_ld;
  args.M = static_cast<int>(p.M);
  args.N = static_cast<int>(p.N);
  args.K = static_cast<int>(p.K);
  args.num_groups = p.num_groups;
  args.swizzle = 2048 / Walk::kUnitRows;

  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(clusters * C::kCluster));
  config.blockDim = dim3(C::kThreads);
  config.dynamicSmemBytes = C::kSmemBytes;
  config.stream = stream;
  cudaLaunchAttribute attr{};
  attr.id = cudaLaunchAttributeClusterDimension;
  attr.val.clusterDim = {C::kCluster, 1, 1};
  config.attrs = &attr;
  config.numAttrs = C::kCluster > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, map_a, map_w, args);
}

struct Variant {
  const char* name;
  bool fp8;
  cudaError_t (*run[2])(const GemmSm90&, cudaStream_t);  // bf16, fp32 output
};

template <bool kFp8, int kWarpgroups, int kSlabs, int BN, int kStages, bool kPair = false,
          int kParts = 1>
constexpr Variant variant(const char* name) {
  return {name,
          kFp8,
          {launch<GemmConfig<kFp8, kWarpgroups, kSlabs, BN, kStages, kPair, kParts, false>>,
           launch<GemmConfig<kFp8, kWarpgroups, kSlabs, BN, kStages, kPair, kParts, true>>}};
}

enum { kBf16Wide, kBf16Mid, kBf16Low, kBf16Narrow, kFp8Tall, kFp8Mid, kFp8Low, kFp8Narrow };
constexpr Variant kVariants[] = {
    variant<false, 2, 1, 256, 4>("bf16 128x256"),
    variant<false, 2, 1, 128, 6>("bf16 128x128"),
    variant<false, 1, 1, 128, 8>("bf16 64x128"),
    variant<false, 1, 1, 32, 12>("bf16 64x32"),
    variant<true, 2, 2, 128, 4, true>("fp8 256x128 in pairs"),
    variant<true, 2, 1, 128, 6, false, 2>("fp8 128x128"),
    variant<true, 1, 1, 128, 8, false, 2>("fp8 64x128"),
    variant<true, 1, 1, 32, 12, false, 2>("fp8 64x32"),
};

bool valid(const GemmSm90& p) {
  const bool fp8 = p.a_scale != nullptr;
  const int64_t unit = fp8 ? 128 : 8;
  return p.M > 0 && p.N > 0 && p.K > 0 && p.N % unit == 0 && p.K % unit == 0 && p.num_groups >= 1 &&
         p.num_groups <= kMaxGemmGroups && (p.num_groups == 1 || p.group_begin != nullptr) &&
         (p.a_scale != nullptr) == (p.w_scale != nullptr) && (!fp8 || p.a_scale_ld >= p.M) &&
         p.M < (int64_t{1} << 30) && p.N * p.num_groups < (int64_t{1} << 30);
}

}  // namespace

int gemm_sm90_num_variants() { return sizeof(kVariants) / sizeof(kVariants[0]); }
const char* gemm_sm90_variant_name(int variant) { return kVariants[variant].name; }
bool gemm_sm90_variant_fits(const GemmSm90& p, int variant) {
  return kVariants[variant].fp8 == (p.a_scale != nullptr);
}

int gemm_sm90_choose(const GemmSm90& p) {
  const bool fp8 = p.a_scale != nullptr;
  const int64_t rows = (p.M + p.num_groups - 1) / p.num_groups;  // of a group, on average
  if (rows <= 64) {
    // Few rows: the weights' bytes decide, so as many CTAs as possible read them.
    const int64_t ctas = (p.N + 127) / 128 * p.num_groups;
    if (fp8) return ctas < 132 ? kFp8Narrow : kFp8Low;
    return ctas < 132 ? kBf16Narrow : kBf16Low;
  }
  if (fp8) return rows >= 1024 ? kFp8Tall : kFp8Mid;
  const int64_t wide = (p.M + 127) / 128 * ((p.N + 255) / 256);
  if (wide < 132) return kBf16Mid;
  return kBf16Wide;
}

cudaError_t gemm_sm90_variant(const GemmSm90& p, int variant, cudaStream_t stream) {
  if (!valid(p) || !gemm_sm90_variant_fits(p, variant)) return cudaErrorInvalidValue;
  return kVariants[variant].run[p.out_fp32 ? 1 : 0](p, stream);
}

cudaError_t gemm_sm90(const GemmSm90& p, cudaStream_t stream) {
  return gemm_sm90_variant(p, gemm_sm90_choose(p), stream);
}

}  // namespace fathom::sm90
