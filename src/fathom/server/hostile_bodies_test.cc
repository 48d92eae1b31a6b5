// Bodies that are wrong get an error that names the field, and no body does harm.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>

#include "fathom/server/test_server.h"

namespace fathom {
namespace {

/// A body, and the field that the error has to name.
struct BadBody {
  const char* path;
  const char* body;
  const char* field;
};

TEST(HostileBodiesTest, BadBodiesAre400AndNameTheField) {
  TestServer server;
  const BadBody cases[] = {
      {"/generate", "", nullptr},
      {"/generate", "{", nullptr},
      {"/generate", "[]", nullptr},
      {"/generate", "\"text\"", nullptr},
      {"/generate", "{\"text\": \"a\xff\"}", nullptr},
      {"/generate", R"({"text": "a", "text": "b"})", nullptr},
      {"/generate", R"({})", "text"},
      {"/generate", R"({"text": "a", "input_ids": [1]})", "text"},
      {"/generate", R"({"text": 5})", "text"},
      {"/generate", R"({"text": ""})", "text"},
      {"/generate", R"({"text": []})", "text"},
      {"/generate", R"({"text": ["a", 1]})", "text"},
      {"/generate", R"({"input_ids": []})", "input_ids"},
      {"/generate", R"({"input_ids": [[]]})", "input_ids"},
      {"/generate", R"({"input_ids": [1, -1]})", "input_ids"},
      {"/generate", R"({"input_ids": [265]})", "input_ids"},
      {"/generate", R"({"input_ids": [99999999999999999999]})", "input_ids"},
      {"/generate", R"({"input_ids": [1.5]})", "input_ids"},
      {"/generate", R"({"input_ids": [[1], 2]})", "input_ids"},
      {"/generate", R"({"text": "a", "stream": "yes"})", "stream"},
      {"/generate", R"({"text": "a", "samplng_params": {}})", "samplng_params"},
      {"/generate", R"({"text": "a", "sampling_params": []})", "sampling_params"},
      {"/generate", R"({"text": "a", "sampling_params": 3})", "sampling_params"},
      {"/generate", R"({"text": "a", "sampling_params": {"temperature": -1}})",
       "sampling_params.temperature"},
      {"/generate", R"({"text": "a", "sampling_params": {"temperature": NaN}})",
       "sampling_params.temperature"},
      {"/generate", R"({"text": "a", "sampling_params": {"temperature": 1e300}})",
       "sampling_params.temperature"},
      {"/generate", R"({"text": "a", "sampling_params": {"temperature": "hot"}})",
       "sampling_params.temperature"},
      {"/generate", R"({"text": "a", "sampling_params": {"top_p": 0}})", "sampling_params.top_p"},
      {"/generate", R"({"text": "a", "sampling_params": {"top_p": 1.1}})", "sampling_params.top_p"},
      {"/generate", R"({"text": "a", "sampling_params": {"top_k": -2}})", "sampling_params.top_k"},
      {"/generate", R"({"text": "a", "sampling_params": {"top_k": 0}})", "sampling_params.top_k"},
      {"/generate", R"({"input_embeds": [[0.5]]})", "input_embeds"},
      {"/generate", R"({"text": "a", "sampling_params": {"min_p": 2}})", "sampling_params.min_p"},
      {"/generate", R"({"text": "a", "sampling_params": {"max_new_tokens": -1}})",
       "sampling_params.max_new_tokens"},
      {"/generate", R"({"text": "a", "sampling_params": {"max_new_tokens": 1e99}})",
       "sampling_params.max_new_tokens"},
      {"/generate",
       R"({"text": "a", "sampling_params": {"max_new_tokens": 2, "min_new_tokens": 3}})",
       "sampling_params.min_new_tokens"},
      {"/generate", R"({"text": "a", "sampling_params": {"frequency_penalty": 3}})",
       "sampling_params.frequency_penalty"},
      {"/generate", R"({"text": "a", "sampling_params": {"presence_penalty": -3}})",
       "sampling_params.presence_penalty"},
      {"/generate", R"({"text": "a", "sampling_params": {"repetition_penalty": 0}})",
       "sampling_params.repetition_penalty"},
      {"/generate", R"({"text": "a", "sampling_params": {"logit_bias": {"x": 1}}})",
       "sampling_params.logit_bias"},
      {"/generate", R"({"text": "a", "sampling_params": {"logit_bias": {"300": 1}}})",
       "sampling_params.logit_bias"},
      {"/generate", R"({"text": "a", "sampling_params": {"logit_bias": {"3": 1e30}}})",
       "sampling_params.logit_bias"},
      {"/generate", R"({"text": "a", "sampling_params": {"stop": [""]}})", "sampling_params.stop"},
      {"/generate", R"({"text": "a", "sampling_params": {"stop_token_ids": ["x"]}})",
       "sampling_params.stop_token_ids"},
      {"/generate", R"({"text": "a", "sampling_params": {"n": 0}})", "sampling_params.n"},
      {"/generate", R"({"text": "a", "sampling_params": {"n": 1000000}})", "sampling_params.n"},
      {"/generate", R"({"text": "a", "sampling_params": {"regex": "a+"}})",
       "sampling_params.regex"},
      {"/generate", R"({"text": "a", "sampling_params": {"sampling_seed": 1.5}})",
       "sampling_params.sampling_seed"},
      {"/generate", R"({"text": "a", "return_logprob": 1})", "return_logprob"},
      {"/generate", R"({"text": "a", "return_logprob": true, "logprob_start_len": 1})",
       "logprob_start_len"},
      {"/generate", R"({"text": "a", "return_logprob": [true, false]})", "return_logprob"},
      {"/generate", R"({"text": "a", "return_logprob": true, "top_logprobs_num": 1000})",
       "top_logprobs_num"},
      {"/generate", R"({"text": "a", "token_ids_logprob": [-3]})", "token_ids_logprob"},
      {"/generate", R"({"text": "a", "lora_path": "x"})", "lora_path"},
      {"/generate", R"({"text": "a", "image_data": ["x"]})", "image_data"},
      {"/generate", R"({"text": "a", "return_hidden_states": true})", "return_hidden_states"},
      {"/generate", R"({"text": "a", "routed_dp_rank": 3})", "routed_dp_rank"},
      {"/generate", R"({"text": "a", "rid": 7})", "rid"},
      {"/tokenize", R"({})", "prompt"},
      {"/tokenize", R"({"prompt": "a", "add_special_tokens": true})", "add_special_tokens"},
      {"/detokenize", R"({"tokens": "a"})", "tokens"},
      {"/v1/completions", R"({})", "prompt"},
      {"/v1/completions", R"({"prompt": []})", "prompt"},
      {"/v1/completions", R"({"prompt": [[1], ["a"]]})", "prompt"},
      {"/v1/completions", R"({"prompt": "a", "max_tokens": "x"})", "max_tokens"},
      {"/v1/completions", R"({"prompt": "a", "best_of": 3})", "best_of"},
      {"/v1/completions", R"({"prompt": "a", "logprobs": 99})", "logprobs"},
      {"/v1/completions", R"({"prompt": "a", "stream_options": {"x": 1}})", "stream_options.x"},
      {"/v1/chat/completions", R"({})", "messages"},
      {"/v1/chat/completions", R"({"messages": []})", "messages"},
      {"/v1/chat/completions", R"({"messages": [{"role": "wizard", "content": "a"}]})", "messages"},
      {"/v1/chat/completions", R"({"messages": [{"content": "a"}]})", "messages"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})",
       "messages[0].content[0]"},
      {"/v1/chat/completions", R"({"messages": [{"role": "user", "content": "a"}], "tools": 3})",
       "tools"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "tool_choice": "required"})",
       "tool_choice"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "response_format": {"type": "json_object"}})",
       "response_format.type"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"x": 1}})",
       "chat_template_kwargs"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": "much"})",
       "reasoning_effort"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "top_logprobs": 3})", "top_logprobs"},
      {"/v1/chat/completions",
       R"({"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "min_tokens": 9})",
       "min_tokens"},
  };
  for (const BadBody& c : cases) {
    const Reply reply = ask(server.port(), "POST", c.path, c.body);
    EXPECT_EQ(reply.status, 400) << c.path << " " << c.body << "\n" << reply.body;
    if (reply.status != 400) continue;
    const Json error = reply.error();
    EXPECT_EQ(error["type"], "invalid_request_error");
    EXPECT_FALSE(error["message"].get<std::string>().empty());
    if (c.field != nullptr) {
      EXPECT_EQ(error["param"], c.field) << c.body << "\n" << reply.body;
      const std::string last = std::string(c.field).substr(std::string(c.field).rfind('.') + 1);
      EXPECT_NE(error["message"].get<std::string>().find(last), std::string::npos) << reply.body;
    }
  }
  EXPECT_EQ(server.post("/v1/completions", {{"prompt", "a"}, {"model", "gpt-4"}}).status, 404);
  const std::string long_prompt = Json{{"text", std::string(5000, 'a')}}.dump();
  EXPECT_EQ(ask(server.port(), "POST", "/generate", long_prompt).status, 400);
  const std::string endless = Json{{"text", std::string(8 << 20, 'a')}}.dump();
  EXPECT_EQ(ask(server.port(), "POST", "/generate", endless).status, 400);
  std::string deep = R"({"text": )";
  deep += std::string(200'000, '[');
  EXPECT_EQ(ask(server.port(), "POST", "/generate", deep).status, 400);
  EXPECT_EQ(server.server().service().load().num_unfinished, 0);
}

/// FATHOM_TEST_BODIES=100000 sends that many.
int num_bodies() {
  const char* text = std::getenv("FATHOM_TEST_BODIES");
  return text == nullptr ? 2500 : std::atoi(text);
}

/// Requests over one connection for as long as the server keeps it.
class KeptConnection {
 public:
  explicit KeptConnection(int port) : port_(port) {}

  Reply post(const std::string& path, const std::string& body, std::mt19937& random) {
    if (!socket_) socket_ = std::make_unique<RawSocket>(port_);
    std::string request = str_cat("POST ", path, " HTTP/1.1\r\nHost: x\r\n");
    if (random() % 4 != 0) {
      request += str_cat("Content-Length: ", body.size(), "\r\n\r\n", body);
    } else {
      request += "Transfer-Encoding: chunked\r\n\r\n";
      for (size_t at = 0; at < body.size();) {
        const std::string piece = body.substr(at, 1 + random() % 100);
        char size[16];
        std::snprintf(size, sizeof size, "%zx\r\n", piece.size());
        request += size + piece + "\r\n";
        at += piece.size();
      }
      request += "0\r\n\r\n";
    }
    EXPECT_TRUE(socket_->send(request));
    const std::string head = socket_->read_until("\r\n\r\n", 60'000);
    Reply reply{status_of(head), head, ""};
    const size_t at = head.find("Content-Length: ");
    if (at != std::string::npos) {
      reply.body = socket_->read_bytes(std::stoul(head.substr(at + 16)), 60'000);
    } else {
      reply.body = socket_->read_until("\r\n0\r\n\r\n", 60'000);
      EXPECT_TRUE(reply.body.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n")) << reply.body;
    }
    if (head.find("Connection: close") != std::string::npos) socket_.reset();
    return reply;
  }

 private:
  int port_;
  std::unique_ptr<RawSocket> socket_;
};

std::string mutated(std::string body, std::mt19937& random) {
  static const std::string splices[] = {"null", "-1",   "1e999",       "[]",
                                        "{}",   "\"\"", "\"\\ud800\"", "99999999999999999999999",
                                        "true", "[[[[", "\\u0000",     "NaN"};
  for (unsigned change = 0; change < 1 + random() % 3; ++change) {
    const size_t at = random() % body.size();
    switch (random() % 8) {
      case 0:
        body[at] = static_cast<char>(random());
        break;
      case 1:
        body.erase(at, 1 + random() % 8);
        break;
      case 2:
        body.insert(at, splices[random() % std::size(splices)]);
        break;
      case 3:
        body.replace(at, std::min<size_t>(body.size() - at, random() % 6),
                     splices[random() % std::size(splices)]);
        break;
      case 4:
        body.resize(at);
        break;
      default: {
        const size_t digit = body.find_first_of("0123456789", at);
        if (digit != std::string::npos) body[digit] = static_cast<char>('0' + random() % 10);
      }
    }
    if (body.empty()) body.push_back('{');
  }
  return body;
}

/// Clients that never finish what they began, a byte now and then.
class SlowClients {
 public:
  explicit SlowClients(int port) : port_(port) {}
  void add(std::mt19937& random) {
    sockets_.push_back(std::make_unique<RawSocket>(port_));
    sockets_.back()->send(
        random() % 2 == 0 ? "POST /generate HTTP/1.1\r\nHost: x\r\nX-Slow: "
                          : "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{");
    if (sockets_.size() > 50) sockets_.erase(sockets_.begin());
  }
  void drip() {
    for (const auto& socket : sockets_) socket->send("a");
  }
  /// Whether the server has got rid of all of them.
  bool are_cut_off() {
    return std::all_of(sockets_.begin(), sockets_.end(), [](const auto& socket) {
      socket->read_all(5000);
      return socket->is_closed();
    });
  }

 private:
  int port_;
  std::vector<std::unique_ptr<RawSocket>> sockets_;
};

/// A body over the limit: announced, or in chunks without end.
int status_of_oversize(int port, bool is_announced) {
  RawSocket socket(port);
  const std::string start = "POST /generate HTTP/1.1\r\nHost: x\r\n";
  if (is_announced) {
    socket.send(start + "Content-Length: 1099511627776\r\n\r\n{\"text\"");
  } else {
    socket.send(start + "Transfer-Encoding: chunked\r\n\r\n");
    const std::string chunk = "1000\r\n" + std::string(4096, '[') + "\r\n";
    for (int i = 0; i < 100 && socket.send(chunk); ++i) {
    }
  }
  return status_of(socket.read_all());
}

TEST(HostileBodiesTest, MutatedBodiesBesideSlowAndGreedyClientsNeverHarmTheServer) {
  TestServer::Settings settings;
  settings.http.max_body_bytes = 100'000;
  settings.http.header_timeout = settings.http.body_timeout = std::chrono::milliseconds(1000);
  TestServer server(settings);
  const std::string seeds[][2] = {
      {"/generate",
       R"({"text":"ab","sampling_params":{"max_new_tokens":3,"temperature":0.5,"top_p":0.9,"stop":["x"],"n":2,"logit_bias":{"5":1.5},"sampling_seed":7},"return_logprob":true,"logprob_start_len":0,"top_logprobs_num":2,"stream":true,"rid":"r"})"},
      {"/generate",
       R"({"input_ids":[[0,70],[5]],"sampling_params":[{"max_new_tokens":2},{"max_new_tokens":0}],"token_ids_logprob":[[3],[4]],"return_logprob":[true,true],"return_routed_experts":true,"priority":3})"},
      {"/v1/completions",
       R"({"model":"scripted","prompt":["a","b"],"max_tokens":4,"logprobs":2,"echo":true,"seed":3,"stream":true,"stream_options":{"include_usage":true}})"},
      {"/v1/chat/completions",
       R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{\"x\": 1}"}}]},{"role":"tool","tool_call_id":"1","content":"r"}],"tools":[{"type":"function","function":{"name":"f","parameters":{}}}],"max_tokens":4,"logprobs":true,"top_logprobs":2,"reasoning_effort":"high"})"}};
  std::mt19937 random(3);
  KeptConnection connection(server.port());
  SlowClients slow(server.port());
  const int num_rounds = num_bodies();
  int num_good = 0, num_bad = 0;
  for (int round = 0; round < num_rounds; ++round) {
    const auto& [path, seed] = seeds[random() % 4];
    const std::string body = mutated(seed, random);
    const Reply reply = connection.post(path, body, random);
    ASSERT_TRUE(reply.status == 200 || (reply.status >= 400 && reply.status <= 404))
        << reply.status << " for " << body << "\n"
        << reply.body;
    (reply.status == 200 ? num_good : num_bad) += 1;
    EXPECT_TRUE(reply.status == 200 || !reply.error()["message"].empty());
    if (round % 50 == 0) slow.add(random);
    if (round % 10 == 0) slow.drip();
    if (round % 500 == 0) {
      EXPECT_EQ(status_of_oversize(server.port(), true), 413);
      EXPECT_EQ(status_of_oversize(server.port(), false), 413);
    }
  }
  EXPECT_GT(num_good, num_rounds / 25);
  EXPECT_GT(num_bad, num_rounds / 5);
  EXPECT_TRUE(slow.are_cut_off());
  EXPECT_TRUE(server.becomes_idle());
  EXPECT_EQ(server.get("/health_generate").status, 200);
}

}  // namespace
}  // namespace fathom
