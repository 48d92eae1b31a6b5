// tokenizer.json: what is accepted encodes text that decodes to the same text.
#include "fathom/tokenizer/tokenizer.h"
#include "fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  fuzz::refuse_or_accept([&] {
    Tokenizer::Options options;
    options.use_jit = false;
    const Tokenizer tokenizer =
        Tokenizer::from_json(fuzz::as_text(data, size), "input", {}, options);
    for (const std::string text : {"", "8+6+5+7=", "ab  12\n\xC3\xA9", "<|a|>b<|a|>"}) {
      fuzz::refuse_or_accept([&] {
        const std::vector<int32_t> ids = tokenizer.encode(text);
        fuzz::require(tokenizer.decode(ids) == text);
      });
    }
    for (const int32_t id : {-1, 0, tokenizer.vocab_size() - 1, tokenizer.vocab_size()}) {
      fuzz::refuse_or_accept([&] { (void)tokenizer.token_bytes(id); });
    }
  });
  return 0;
}
