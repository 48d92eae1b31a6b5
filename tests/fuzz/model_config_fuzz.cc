// config.json of a model in its three dialects: an accepted one can be written and read again.
#include "fathom/base/json.h"
#include "fathom/model/config.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  fuzz::refuse_or_accept([&] {
    const Json json = parse_json(fuzz::as_text(data, size), "input");
    const ModelConfig config = parse_model_config(json, "input");
    fuzz::require(config.hidden_size > 0 && config.num_hidden_layers > 0 &&
                  config.num_attention_heads > 0);
    (void)model_config_to_json(config, "bfloat16").dump();
  });
  return 0;
}
