#include "fathom/parallel/pipeline_schedule.h"

#include <algorithm>

#include "fathom/base/error.h"

namespace fathom {
namespace {

using What = PipelineMessage::What;

class ScheduleBuilder {
 public:
  ScheduleBuilder(int num_stages, int stage) : num_stages_(num_stages), stage_(stage) {
    FATHOM_ASSERT(0 <= stage && stage < num_stages, "stage ", stage, " of ", num_stages);
  }

  void forward(int k) { actions_.push_back({PipelineAction::Kind::kForward, k, {}}); }
  void backward(int k) { actions_.push_back({PipelineAction::Kind::kBackward, k, {}}); }

  // Nothing at the ends of the pipeline.
  std::vector<PipelineMessage> streams_in(int k) const {
    return previous(What::kStreams, false, k);
  }
  std::vector<PipelineMessage> gradient_out(int k) const {
    return previous(What::kGradient, true, k);
  }
  std::vector<PipelineMessage> streams_out(int k) const { return next(What::kStreams, true, k); }
  std::vector<PipelineMessage> gradient_in(int k) const { return next(What::kGradient, false, k); }

  void exchange(std::vector<PipelineMessage> messages, std::vector<PipelineMessage> more = {}) {
    messages.insert(messages.end(), more.begin(), more.end());
    if (messages.empty()) return;
    actions_.push_back({PipelineAction::Kind::kExchange, 0, std::move(messages)});
  }

  std::vector<PipelineAction> take() { return std::move(actions_); }

 private:
  std::vector<PipelineMessage> previous(What what, bool sends, int k) const {
    if (stage_ == 0) return {};
    return {{what, sends, stage_ - 1, k}};
  }
  std::vector<PipelineMessage> next(What what, bool sends, int k) const {
    if (stage_ == num_stages_ - 1) return {};
    return {{what, sends, stage_ + 1, k}};
  }
  int num_stages_, stage_;
  std::vector<PipelineAction> actions_;
};

}  // namespace

std::string PipelineAction::text() const {
  if (kind == Kind::kForward) return str_cat("forward ", micro_batch);
  if (kind == Kind::kBackward) return str_cat("backward ", micro_batch);
  std::string out;
  for (const PipelineMessage& m : messages) {
    out += str_cat(out.empty() ? "" : ", ", m.sends ? "send " : "receive ",
                   m.what == What::kStreams ? "streams " : "gradient ", m.micro_batch,
                   m.sends ? " to " : " from ", m.stage);
  }
  return out;
}

std::vector<PipelineAction> one_forward_one_backward(int num_stages, int stage,
                                                     int num_micro_batches) {
  ScheduleBuilder plan(num_stages, stage);
  const int n = num_micro_batches, ahead = std::min(num_stages - 1 - stage, n);
  for (int k = 0; k < ahead; ++k) {
    plan.exchange(plan.streams_in(k));
    plan.forward(k);
    plan.exchange(plan.streams_out(k));
  }
  if (ahead < n) plan.exchange(plan.streams_in(ahead));
  for (int k = ahead, done = 0; k < n; ++k, ++done) {
    plan.forward(k);
    // The next stage sends the gradient and awaits these streams in one exchange too.
    plan.exchange(plan.streams_out(k), plan.gradient_in(done));
    plan.backward(done);
    plan.exchange(plan.gradient_out(done),
                  k + 1 < n ? plan.streams_in(k + 1) : std::vector<PipelineMessage>());
  }
  for (int k = n - ahead; k < n; ++k) {
    plan.exchange(plan.gradient_in(k));
    plan.backward(k);
    plan.exchange(plan.gradient_out(k));
  }
  return plan.take();
}

std::vector<PipelineAction> forward_only(int num_stages, int stage, int num_micro_batches) {
  ScheduleBuilder plan(num_stages, stage);
  for (int k = 0; k < num_micro_batches; ++k) {
    plan.exchange(plan.streams_in(k));
    plan.forward(k);
    plan.exchange(plan.streams_out(k));
  }
  return plan.take();
}

int max_in_flight(const std::vector<PipelineAction>& actions) {
  int now = 0, most = 0;
  for (const PipelineAction& a : actions) {
    if (a.kind == PipelineAction::Kind::kForward) most = std::max(most, ++now);
    if (a.kind == PipelineAction::Kind::kBackward) --now;
  }
  return most;
}

}  // namespace fathom
