// A server of the program's own code whose model answers by a script, so that clients can be tested
// on answers that no small model gives, tool calls among them.
//   scripted_server SCRIPT.json    [{"messages": [...], "tools": [...], "thinking": b, "answer":
//   T}]
// Prints its port, and runs until standard input ends.
#include <cstdio>
#include <string>

#include "fathom/base/json.h"
#include "fathom/rollout/generate.h"
#include "fathom/server/scripted_model.h"
#include "fathom/server/server.h"
#include "fathom/tokenizer/chat.h"

int main(int argc, char** argv) {
  using namespace fathom;
  try {
    FATHOM_CHECK(argc == 2, "one argument is expected: the script");
    const auto tokenizer = std::make_shared<const Tokenizer>(make_byte_tokenizer());
    const auto script = std::make_shared<Script>();
    script->delay = std::chrono::milliseconds(1);  // so that streams come in several events
    for (const Json& line : read_json_file(argv[1])) {
      ChatOptions options;
      if (line.contains("tools")) options.tools = line["tools"];
      const bool thinks = line.value("thinking", true);
      options.thinking_mode = thinks ? ThinkingMode::kThinking : ThinkingMode::kChat;
      script->add(tokenizer->encode(encode_messages(line.at("messages"), options)),
                  tokenizer->encode(line.at("answer").get<std::string>()));
    }
    ThreadPool pool(1);
    const ExecContext ctx{&pool, detect_cpu_isa()};
    ServedModel model;
    model.config = scripted_model_config();
    model.tokenizer = tokenizer;
    model.path = model.name = "scripted";
    model.next_seed = [] { return uint64_t{1}; };
    EngineServer server(
        [&](OnToken on_token) {
          EngineOptions options;
          options.append_token = append_token_of(*tokenizer);
          options.on_token = std::move(on_token);
          return std::make_unique<Engine>(
              ctx, model.config, std::make_unique<ScriptedModel>(kByteVocab, script), options);
        },
        model, ServerOptions());
    std::printf("%d\n", server.port());
    std::fflush(stdout);
    while (std::getchar() != EOF) {
    }
    return 0;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "error: %s\n", e.what());
    return 1;
  }
}
