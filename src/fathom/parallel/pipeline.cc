#include "fathom/parallel/pipeline.h"

#include <map>
#include <utility>
#include <vector>

#include "fathom/base/error.h"
#include "fathom/parallel/pipeline_schedule.h"

namespace fathom {
namespace {

using What = PipelineMessage::What;

/// One stage's run through its list.
class StageRun {
 public:
  StageRun(const ExecContext& ctx, const Weights& w, const dist::Group& stages,
           const PipelineWork& work)
      : ctx_(ctx), w_(w), stages_(stages), work_(work) {
    FATHOM_ASSERT(w.layout.is_first_stage == (stages.rank() == 0) &&
                      w.layout.is_last_stage == (stages.rank() == stages.size() - 1),
                  "weights of another stage than ", stages.rank(), " of ", stages.size());
  }

  /// @param trained the weights once more, to be changed; null: forward alone.
  void run(const std::vector<PipelineAction>& actions, Weights* trained) {
    for (const PipelineAction& action : actions) {
      switch (action.kind) {
        case PipelineAction::Kind::kForward:
          forward(action.micro_batch, trained != nullptr);
          break;
        case PipelineAction::Kind::kBackward:
          backward(action.micro_batch, *trained);
          break;
        case PipelineAction::Kind::kExchange:
          exchange(action.messages);
          break;
      }
    }
    FATHOM_ASSERT(waiting_.empty() && tapes_.empty(), "a schedule leaves work undone");
  }

 private:
  using Key = std::pair<What, int>;  // of streams or gradients of a micro-batch

  Tensor take(What what, int micro_batch) {
    const auto it = waiting_.find(Key(what, micro_batch));
    FATHOM_ASSERT(it != waiting_.end(), "nothing has come for micro-batch ", micro_batch);
    Tensor tensor = std::move(it->second);
    waiting_.erase(it);
    return tensor;
  }

  void forward(int micro_batch, bool with_tape) {
    const Batch& batch = work_.batch(micro_batch);
    const Tensor streams =
        w_.layout.is_first_stage ? embed(ctx_, w_, batch) : take(What::kStreams, micro_batch);
    Tensor out =
        forward_layers(ctx_, w_, batch, streams, with_tape ? &tapes_[micro_batch] : nullptr);
    if (!w_.layout.is_last_stage) {
      waiting_[Key(What::kStreams, micro_batch)] = std::move(out);
      return;
    }
    Tensor gradient = work_.head(micro_batch, out);
    if (with_tape) waiting_[Key(What::kGradient, micro_batch)] = std::move(gradient);
  }

  void backward(int micro_batch, Weights& w) {
    const Batch& batch = work_.batch(micro_batch);
    Tensor gradient =
        backward_layers(ctx_, w, batch, tapes_.at(micro_batch), take(What::kGradient, micro_batch));
    tapes_.erase(micro_batch);
    if (w.layout.is_first_stage) {
      embed_backward(ctx_, w, batch, gradient);
    } else {
      waiting_[Key(What::kGradient, micro_batch)] = std::move(gradient);
    }
  }

  void exchange(const std::vector<PipelineMessage>& messages) {
    std::vector<dist::Outgoing> out;
    std::vector<dist::Incoming> in;
    std::vector<std::pair<Key, Tensor>> sent, received;
    for (const PipelineMessage& m : messages) {
      const Key key(m.what, m.micro_batch);
      if (m.sends) {
        sent.emplace_back(key, take(m.what, m.micro_batch).to_host());
        const Tensor& tensor = sent.back().second;
        out.push_back({m.stage, tensor.f32(), tensor.num_bytes()});
      } else {
        const int64_t T = work_.batch(m.micro_batch).num_tokens();
        const ModelConfig& c = w_.config;
        received.emplace_back(
            key, Tensor::empty({w_.layout.stream_rows(T).count, c.hc_mult, c.hidden_size}));
        const Tensor& tensor = received.back().second;
        in.push_back({m.stage, tensor.f32(), tensor.num_bytes()});
      }
    }
    stages_.exchange(out, in);
    for (auto& [key, tensor] : received) {
      waiting_[key] = ctx_.device == nullptr ? tensor : tensor.copy_to(ctx_.device);
    }
  }

  const ExecContext& ctx_;
  const Weights& w_;
  const dist::Group& stages_;
  const PipelineWork& work_;
  std::map<Key, Tensor> waiting_;  // come, or made and not sent yet
  std::map<int, Tape> tapes_;      // of micro-batches between forward and backward
};

}  // namespace

void run_training(const ExecContext& ctx, Weights& w, const dist::Group& stages,
                  const PipelineWork& work) {
  StageRun(ctx, w, stages, work)
      .run(one_forward_one_backward(stages.size(), stages.rank(), work.num_micro_batches), &w);
}

void run_forward(const ExecContext& ctx, const Weights& w, const dist::Group& stages,
                 const PipelineWork& work) {
  StageRun(ctx, w, stages, work)
      .run(forward_only(stages.size(), stages.rank(), work.num_micro_batches), nullptr);
}

}  // namespace fathom
