#include "fathom/kernels/embedding/embedding.h"

#include "fathom/base/error.h"
#include "fathom/kernels/embedding/embedding_ref.h"
#include "fathom/kernels/kernel_test.h"

namespace fathom {
namespace {

TEST(EmbeddingTest, LookupCopiesRowsAndItsGradientAddsThemInTokenOrder) {
  const int64_t vocab = 9, T = 150, copies = 4;
  for (const int64_t D : {1, 24, 200}) {
    const auto table = random_floats(vocab * D, -1, 1, 1);
    const auto dout = random_floats(T * copies * D, -1, 1, 2);
    std::vector<int32_t> ids;
    for (int64_t t = 0; t < T; ++t) ids.push_back(static_cast<int32_t>((t * t) % 8));  // 8: unused
    const auto ref = embedding_ref(to_double(table), ids, D, copies);
    const auto dref = embedding_bwd_ref(to_double(dout), ids, vocab, D, copies);
    std::vector<float> first;
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> out(ref.size());
      embedding_fwd(ctx, table.data(), ids.data(), T, D, copies, out.data());
      expect_close(out, ref, 0, 0, name);
      std::vector<float> whole(table.size()), pieces(table.size());
      embedding_bwd(ctx, dout.data(), ids.data(), T, D, copies, whole.data());
      // Up to 80 tokens of 4 copies: as many roundings of sums below 40.
      expect_close(whole, dref, 320 * 40 * 0x1p-24, 0, name);
      embedding_bwd(ctx, dout.data(), ids.data(), 61, D, copies, pieces.data());
      embedding_bwd(ctx, dout.data() + 61 * copies * D, ids.data() + 61, T - 61, D, copies,
                    pieces.data());
      expect_same_bits(pieces, whole, name + " in two micro-batches");
      if (first.empty()) first = whole;
      expect_same_bits(whole, first, name);
    });
  }
}

TEST(EmbeddingTest, NegativeIdsAreRefusedAndZeroTokensTouchNothing) {
  const std::vector<int32_t> ids = {1, 0, -7};
  std::vector<float> memory(64);
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    try {
      embedding_fwd(ctx, memory.data(), ids.data(), 3, 4, 1, memory.data());
      FAIL();
    } catch (const UserError& e) {
      EXPECT_NE(std::string(e.what()).find("token id -7 at position 2"), std::string::npos);
    }
    EXPECT_THROW(embedding_bwd(ctx, memory.data(), ids.data(), 3, 4, 1, memory.data()), UserError);
    embedding_fwd(ctx, nullptr, nullptr, 0, 4, 1, nullptr);
    embedding_bwd(ctx, nullptr, nullptr, 0, 4, 1, nullptr);
  });
}

}  // namespace
}  // namespace fathom
