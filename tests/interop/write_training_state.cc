// Writes a training checkpoint whose values a reader can work out from the model directory.
// usage: write_training_state MODEL_DIRECTORY SAVE_DIRECTORY
// Masters are the model's weights w, the moments are -w and w * w; the step is 19.
#include <cstdio>

#include "fathom/base/thread_pool.h"
#include "fathom/checkpoint/load.h"
#include "fathom/checkpoint/training_state.h"

int main(int argc, char** argv) {
  using namespace fathom;
  if (argc != 3) {
    std::fprintf(stderr, "usage: write_training_state MODEL_DIRECTORY SAVE_DIRECTORY\n");
    return 2;
  }
  ThreadPool threads(2);
  const ExecContext ctx{&threads, detect_cpu_isa()};
  Weights weights = load_weights(ctx, argv[1]);
  std::vector<MomentsView> moments;
  for (Parameter* p : parameters_by_name(weights)) {
    if (!p->has_gradient) continue;
    const Tensor first = p->master.clone(), second = p->master.clone();
    for (int64_t i = 0; i < first.numel(); ++i) {
      second.f32()[i] *= second.f32()[i];
      first.f32()[i] = -first.f32()[i];
    }
    moments.push_back({p, first, second});
  }
  save_training_state(argv[2], 19, weights, moments, Json{{"lr", 0.001}}, std::nullopt);
  return 0;
}
