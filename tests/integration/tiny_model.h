// A small random V4 with every part, for tests that span folders: the tiny recipe's model. On the
// device in the tests that are built for one (kernels/kernel_test.h).
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "fathom/base/hash.h"
#include "fathom/kernels/kernel_test.h"
#include "fathom/model/weights.h"
#include "fathom/train/supervised.h"

namespace fathom {

inline std::string source_path(const std::string& name) {
  return std::string(FATHOM_SOURCE_DIR) + "/" + name;
}

inline Weights make_tiny_weights(uint64_t seed, Precision precision = Precision::kFp32) {
  const std::string path = source_path("configs/tiny/model.json");
  Weights w = make_weights(parse_model_config(read_json_file(path), path));
  init_random_weights(w, seed);
  ThreadPool pool(1);
  move_weights(base_context(&pool), &w);
  if (precision != Precision::kFp32) set_precision(base_context(&pool), &w, precision);
  return w;
}

/// For tests that hold in every mode: INSTANTIATE_TEST_SUITE_P(Modes, Name, ::testing::ValuesIn(
/// kAllPrecisions), name_of_mode).
inline constexpr Precision kAllPrecisions[] = {Precision::kFp32, Precision::kParityBf16,
                                               Precision::kParityFp8};
inline std::string name_of_mode(const ::testing::TestParamInfo<Precision>& info) {
  std::string name = precision_name(info.param);
  std::erase(name, '-');
  return name;
}

inline std::vector<int32_t> random_ids(uint64_t seed, int64_t n, int64_t vocab) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    ids.push_back(
        static_cast<int32_t>(mix64(seed, static_cast<uint64_t>(i)) % static_cast<uint64_t>(vocab)));
  }
  return ids;
}

/// True when every master of both models has the same bits.
inline bool same_masters(const Weights& a, const Weights& b) {
  std::vector<Tensor> of_a, of_b;
  for_each_parameter(a, [&](const Parameter& p) { of_a.push_back(p.master.to_host()); });
  for_each_parameter(b, [&](const Parameter& p) { of_b.push_back(p.master.to_host()); });
  if (of_a.size() != of_b.size()) return false;
  for (size_t i = 0; i < of_a.size(); ++i) {
    if (of_a[i].num_bytes() != of_b[i].num_bytes() ||
        std::memcmp(of_a[i].bytes(), of_b[i].bytes(), static_cast<size_t>(of_a[i].num_bytes())) !=
            0) {
      return false;
    }
  }
  return true;
}

}  // namespace fathom
