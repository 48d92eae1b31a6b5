#include "fathom/kernels/adam/adam.h"

#include "fathom/base/error.h"
#include "fathom/kernels/adam/adam_ref.h"
#include "fathom/kernels/kernel_test.h"

namespace fathom {
namespace {

AdamStep step_number(int step, float grad_scale) {
  AdamStep s{.lr = 1e-2f,
             .beta1 = 0.9f,
             .beta2 = 0.95f,
             .eps = 1e-8f,
             .weight_decay = 0.1f,
             .bias_correction1 = 0,
             .bias_correction2 = 0,
             .grad_scale = grad_scale};
  s.bias_correction1 = static_cast<float>(1 - std::pow(0.9, step));
  s.bias_correction2 = static_cast<float>(1 - std::pow(0.95, step));
  return s;
}

TEST(AdamTest, TenStepsFollowFp64WithSameBitsEverywhere) {
  for (const int64_t n : {1, 37, 40000}) {
    const auto w0 = random_floats(n, -1, 1, 1);
    std::vector<float> first;
    std::vector<double> w_ref = to_double(w0), m_ref(w0.size()), v_ref(w0.size());
    for (int step = 1; step <= 10; ++step) {
      adam_ref(step_number(step, 0.7f), to_double(random_floats(n, -1, 1, 100u + step)), w_ref,
               m_ref, v_ref);
    }
    for_each_context([&](const ExecContext& ctx, const std::string& name) {
      std::vector<float> w = w0, m(w0.size()), v(w0.size());
      for (int step = 1; step <= 10; ++step) {
        const auto grad = random_floats(n, -1, 1, 100u + step);
        adam_update(ctx, step_number(step, 0.7f), n, grad.data(), w.data(), m.data(), v.data());
      }
      const double eps = 0x1p-24;
      // Ten steps of 3 roundings of values below 1 (m, v) and of at most 1.2 (w); 1 - beta itself
      // is rounded (relative error eps / (1 - beta)). A step of lr <= 0.01 carries 20 roundings
      // more.
      expect_close(m, m_ref, 10 * 3 * eps + 10 * eps, 0, name + " m");
      expect_close(v, v_ref, 10 * 3 * eps + 20 * eps, 0, name + " v");
      expect_close(w, w_ref, 10 * (2 * 1.2 + 0.01 * 100) * eps, 0, name + " w");
      if (first.empty()) first = w;
      expect_same_bits(w, first, name);
    });
  }
}

TEST(AdamTest, ZeroGradientOnlyDecaysAndZeroElementsTouchNothing) {
  for_each_context([&](const ExecContext& ctx, const std::string&) {
    std::vector<float> w = {2, -4}, m(2), v(2), grad(2);
    AdamStep s = step_number(1, 1);
    s.lr = 0.5f;
    s.weight_decay = 0.25f;
    adam_update(ctx, s, 2, grad.data(), w.data(), m.data(), v.data());
    EXPECT_EQ(w, (std::vector<float>{1.75f, -3.5f}));
    adam_update(ctx, s, 0, nullptr, nullptr, nullptr, nullptr);
    s.bias_correction1 = 0;
    EXPECT_THROW(adam_update(ctx, s, 2, grad.data(), w.data(), m.data(), v.data()), InternalError);
  });
}

}  // namespace
}  // namespace fathom
