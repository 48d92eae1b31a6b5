// The HTTP layer against clients that are well behaved, slow, greedy, broken or gone.
#include "fathom/server/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_future.hpp>
#include <random>
#include <thread>

#include "fathom/server/event.h"
#include "fathom/server/http_client.h"
#include "fathom/server/raw_socket.h"

namespace fathom {
namespace {

using std::chrono::milliseconds;

HttpServerOptions small_limits() {
  HttpServerOptions o;
  o.max_header_bytes = 2048;
  o.max_body_bytes = 10'000;
  o.header_timeout = milliseconds(300);
  o.body_timeout = milliseconds(300);
  o.idle_timeout = milliseconds(3000);
  o.write_timeout = milliseconds(500);
  return o;
}

/// Echoes; /stream sends forever; /wait answers when the client has gone; others throw.
class HttpServerTest : public ::testing::Test {
 protected:
  void start(const HttpServerOptions& options) {
    server_ = std::make_unique<HttpServer>(
        options, [this](const HttpRequest& request, HttpReply& reply) -> asio::awaitable<void> {
          return answer(request, reply);
        });
  }
  asio::awaitable<void> answer(const HttpRequest& request, HttpReply& reply) {
    ++num_requests_;
    if (request.path == "/user") FATHOM_CHECK(false, "not like this");
    if (request.path == "/field") throw HttpError(422, "too long", "prompt");
    if (request.path == "/bug") FATHOM_ASSERT(false, "secret detail");
    if (request.path == "/silent") co_return;
    if (request.path == "/stream") {
      HttpResponse head;
      head.content_type = "text/event-stream";
      co_await reply.start(head);
      const int64_t pieces = std::stoll(request.query_value("pieces").value_or("1000000000"));
      try {
        for (int64_t i = 0; i < pieces; ++i) {
          std::string piece(
              static_cast<size_t>(std::stoll(request.query_value("size").value_or("9"))),
              static_cast<char>('a' + i % 26));
          co_await reply.write(std::move(piece));
        }
        co_await reply.end();
      } catch (const ClientGone&) {
        ++num_gone_;
        throw;
      }
      co_return;
    }
    if (request.path == "/break") {
      HttpResponse head;
      co_await reply.start(std::move(head));
      std::string half = "half";
      co_await reply.write(std::move(half));
      throw HttpError(500, "too late to say");
    }
    if (request.path == "/wait") {
      Event event(reply.executor());
      reply.on_client_gone([event] { event.notify(); });
      co_await event.wait();
      ++num_gone_;
      co_return;
    }
    HttpResponse response;
    response.content_type = "text/plain";
    response.body = request.method + " " + request.path + "?" + request.query + " " + request.body;
    co_await reply.send(std::move(response));
  }
  void expect_alive() {
    RawSocket s(server_->port());
    s.send("GET /alive HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(body_of(s.read_response()), "GET /alive? ");
  }
  template <typename Condition>
  static bool eventually(Condition&& condition) {
    for (int i = 0; i < 1000 && !condition(); ++i) std::this_thread::sleep_for(milliseconds(5));
    return condition();
  }

  std::atomic<int64_t> num_requests_ = 0, num_gone_ = 0;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, OneConnectionServesManyRequestsPipelinedOrNot) {
  start(small_limits());
  RawSocket s(server_->port());
  for (int i = 0; i < 3; ++i) {
    s.send("POST /a%20b?x=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
    const std::string response = s.read_response();
    EXPECT_EQ(status_of(response), 200);
    EXPECT_EQ(body_of(response), "POST /a%20b?x=1 hello");
  }
  s.send("GET /1 HTTP/1.1\r\nHost: x\r\n\r\nGET /2 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_EQ(body_of(s.read_response()), "GET /1? ");
  EXPECT_EQ(body_of(s.read_response()), "GET /2? ");
  s.send("GET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(body_of(s.read_response()), "GET /3? ");
  EXPECT_EQ(s.read_all(), "");
  EXPECT_TRUE(s.is_closed());
}

TEST_F(HttpServerTest, ChunkedBodiesAndExpectContinue) {
  start(small_limits());
  RawSocket s(server_->port());
  s.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
  s.send("2;ext=1\r\nde\r\n0\r\n\r\n");
  EXPECT_EQ(body_of(s.read_response()), "POST /? abcde");
  s.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(s.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  s.send("abc");
  EXPECT_EQ(body_of(s.read_response()), "POST /? abc");
}

TEST_F(HttpServerTest, HeadHasNoBodyAndHttp10Closes) {
  start(small_limits());
  RawSocket head(server_->port());
  head.send("HEAD /x HTTP/1.1\r\nHost: x\r\n\r\nGET /y HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_NE(head.read_until("\r\n\r\n").find("Content-Length: 9\r\n"), std::string::npos);
  EXPECT_EQ(body_of(head.read_response()), "GET /y? ");
  RawSocket old(server_->port());
  old.send("GET /stream?pieces=3 HTTP/1.0\r\n\r\n");
  const std::string all = old.read_all();
  EXPECT_EQ(body_of(all), "aaaaaaaaabbbbbbbbbccccccccc") << "no chunks";
}

TEST_F(HttpServerTest, BodiesOverTheLimitAre413HoweverTheyCome) {
  start(small_limits());
  {
    RawSocket s(server_->port());
    s.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10001\r\n\r\n" + std::string(10001, 'x'));
    EXPECT_EQ(status_of(s.read_all()), 413);
  }
  {
    RawSocket s(server_->port());
    s.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n");
    EXPECT_EQ(status_of(s.read_all()), 400);
  }
  {
    RawSocket s(server_->port());
    s.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    const std::string chunk = "3e8\r\n" + std::string(1000, 'x') + "\r\n";
    for (int i = 0; i < 200 && s.send(chunk); ++i) {
    }
    EXPECT_EQ(status_of(s.read_all()), 413);
  }
  {
    RawSocket s(server_->port());  // one chunk that claims to be huge
    s.send("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nfffffff0\r\nxxx");
    EXPECT_EQ(status_of(s.read_all()), 413);
  }
  RawSocket just(server_->port());
  just.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n" +
            std::string(10000, 'x'));
  EXPECT_EQ(status_of(just.read_response()), 200);
  EXPECT_EQ(num_requests_, 1);
}

TEST_F(HttpServerTest, HeadersOverTheLimitAre431) {
  start(small_limits());
  for (const std::string& head :
       {"GET /" + std::string(5000, 'a') + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: x\r\nBig: " + std::string(200'000, 'b') + "\r\n\r\n"}) {
    RawSocket s(server_->port());
    s.send(head);
    EXPECT_EQ(status_of(s.read_all()), 431);
  }
  std::string many = "GET / HTTP/1.1\r\nHost: x\r\n";
  for (int i = 0; i < 2000; ++i) many += str_cat("H", i, ": v\r\n");
  RawSocket s(server_->port());
  s.send(many + "\r\n");
  EXPECT_EQ(status_of(s.read_all()), 431);
  expect_alive();
}

TEST_F(HttpServerTest, WhatIsNotHttpIs400) {
  start(small_limits());
  for (const std::string& bytes : {
           std::string("nonsense\r\n\r\n"),
           std::string("GET\r\n\r\n"),
           std::string("GET / HTTP/9.9\r\n\r\n"),
           std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + "\r\n\r\n",
           std::string("GET / HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n"),
           std::string("GET / HTTP/1.1\r\nHost: x\r\nA: b\x01\x02\r\n\r\n"),
           std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n"),
           std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
           std::string(
               "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
           std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: "
                       "chunked\r\n\r\n"
                       "0\r\n\r\n"),
           std::string(
               "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n"),
           std::string(
               "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabcdef\r\n"),
       }) {
    RawSocket s(server_->port());
    s.send(bytes);
    const std::string response = s.read_all();
    EXPECT_EQ(status_of(response), 400) << bytes << "\n" << response;
    EXPECT_NE(response.find("\"message\""), std::string::npos);
  }
  EXPECT_EQ(num_requests_, 0);
  expect_alive();
}

TEST_F(HttpServerTest, AHostIsExpectedAndNoCodingButChunked) {
  start(small_limits());
  const std::pair<std::string, int> cases[] = {
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", 400},
      {"GET / HTTP/1.0\r\n\r\n", 200},
      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nabc", 501},
      {"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
      {"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: Chunked\r\n\r\n"
       "0\r\n\r\n",
       200},
  };
  for (const auto& [bytes, status] : cases) {
    RawSocket s(server_->port());
    s.send(bytes);
    const std::string response = s.read_all();
    EXPECT_EQ(status_of(response), status) << bytes << "\n" << response;
    EXPECT_TRUE(s.is_closed()) << bytes;
    EXPECT_NE(response.find("Connection: close"), std::string::npos) << bytes;
  }
  EXPECT_EQ(num_requests_, 2);
}

TEST_F(HttpServerTest, SlowClientsAreCutOff) {
  start(small_limits());
  for (const std::string& beginning :
       {std::string("GET / HT"), std::string("GET / HTTP/1.1\r\nHost: x\r\nA: "),
        std::string("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nab"),
        std::string("POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\na")}) {
    RawSocket s(server_->port());
    s.send(beginning);
    const auto begin = std::chrono::steady_clock::now();
    bool is_open = true;
    for (int i = 0; i < 200 && is_open; ++i) {  // a byte now and then does not buy more time
      std::this_thread::sleep_for(milliseconds(20));
      is_open = s.send("x") && !(s.read_until("never", 1), s.is_closed());
    }
    EXPECT_FALSE(is_open) << beginning;
    EXPECT_LT(std::chrono::steady_clock::now() - begin, milliseconds(3500)) << beginning;
  }
  EXPECT_EQ(num_requests_, 0);
  EXPECT_TRUE(eventually([&] { return server_->num_connections() == 0; }));
}

TEST_F(HttpServerTest, ConnectionsThatBreakOffLeaveNothingBehind) {
  start(small_limits());
  for (const char* bytes :
       {"", "G", "GET / HTTP/1.1\r\n", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab"}) {
    RawSocket s(server_->port());
    s.send(bytes);
  }
  EXPECT_TRUE(eventually([&] { return server_->num_connections() == 0; }));
  EXPECT_EQ(num_requests_, 0);
  expect_alive();
}

TEST_F(HttpServerTest, TheNumberOfConnectionsIsLimited) {
  HttpServerOptions o = small_limits();
  o.max_connections = 3;
  start(o);
  std::vector<std::unique_ptr<RawSocket>> held;
  for (int i = 0; i < 3; ++i) {
    held.push_back(std::make_unique<RawSocket>(server_->port()));
    held.back()->send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_EQ(status_of(held.back()->read_response()), 200);
  }
  RawSocket fourth(server_->port());
  EXPECT_EQ(status_of(fourth.read_response()), 503);
  fourth.close();
  held.clear();
  EXPECT_TRUE(eventually([&] { return server_->num_connections() == 0; }));
  expect_alive();
}

TEST_F(HttpServerTest, BodiesOfAllRequestsTogetherAreLimited) {
  HttpServerOptions o = small_limits();
  o.max_total_body_bytes = 15'000;
  o.body_timeout = milliseconds(2000);
  start(o);
  RawSocket first(server_->port()), second(server_->port());
  first.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\nx");
  std::this_thread::sleep_for(milliseconds(50));
  second.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\nx");
  EXPECT_EQ(status_of(second.read_response()), 503);
  first.send(std::string(8999, 'x'));
  EXPECT_EQ(status_of(first.read_response()), 200);
  RawSocket third(server_->port());
  third.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n\r\n" + std::string(9000, 'x'));
  EXPECT_EQ(status_of(third.read_response()), 200) << "what was held is free again";
}

TEST_F(HttpServerTest, ErrorsOfHandlersBecomeResponses) {
  start(small_limits());
  RawSocket s(server_->port());
  const auto get = [&](const std::string& path) {
    s.send("GET " + path + " HTTP/1.1\r\nHost: x\r\n\r\n");
    return s.read_response();
  };
  std::string response = get("/user");
  EXPECT_EQ(status_of(response), 400);
  EXPECT_EQ(Json::parse(body_of(response))["error"]["message"], "not like this");
  response = get("/field");
  EXPECT_EQ(status_of(response), 422);
  EXPECT_EQ(Json::parse(body_of(response))["error"]["param"], "prompt");
  response = get("/bug");
  EXPECT_EQ(status_of(response), 500);
  EXPECT_EQ(response.find("secret"), std::string::npos);
  EXPECT_EQ(status_of(get("/silent")), 500);
  EXPECT_EQ(status_of(get("/fine")), 200) << "on the same connection";
  s.send("GET /break HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string broken = s.read_all();
  EXPECT_NE(broken.find("half"), std::string::npos);
  EXPECT_EQ(broken.find("0\r\n\r\n"), std::string::npos) << "a broken body must not look whole";
}

TEST_F(HttpServerTest, AClientThatLeavesIsNoticed) {
  start(small_limits());
  {
    RawSocket s(server_->port());
    s.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_TRUE(eventually([&] { return num_requests_ == 1; }));
    EXPECT_EQ(num_gone_, 0);
  }
  EXPECT_TRUE(eventually([&] { return num_gone_ == 1; })) << "while nothing is written";
  {
    RawSocket s(server_->port());
    s.send("GET /stream HTTP/1.1\r\nHost: x\r\n\r\n");
    s.read_until("zzz");
  }
  EXPECT_TRUE(eventually([&] { return num_gone_ == 2; })) << "while something is written";
  RawSocket idle_reader(server_->port());
  idle_reader.send("GET /stream?size=100000 HTTP/1.1\r\nHost: x\r\n\r\n");
  EXPECT_TRUE(eventually([&] { return num_gone_ == 3; })) << "one that does not read";
  EXPECT_TRUE(eventually([&] { return server_->num_active_requests() == 0; }));
}

TEST_F(HttpServerTest, DrainingFinishesWhatIsUnderWayAndTakesNothingNew) {
  start(small_limits());
  RawSocket idle(server_->port()), busy(server_->port());
  idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  idle.read_response();
  busy.send("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\na");
  std::this_thread::sleep_for(milliseconds(50));
  server_->begin_drain();
  idle.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  RawSocket fresh(server_->port());
  fresh.send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
  for (RawSocket* late : {&idle, &fresh}) {
    const std::string refusal = late->read_all();
    EXPECT_EQ(status_of(refusal), 503);
    EXPECT_NE(refusal.find("Connection: close"), std::string::npos);
    EXPECT_TRUE(late->is_closed());
  }
  RawSocket silent(server_->port());
  busy.send("b");
  const std::string response = busy.read_all();
  EXPECT_EQ(body_of(response), "POST /? ab");
  EXPECT_NE(response.find("Connection: close"), std::string::npos);
  EXPECT_EQ(num_requests_, 2);
  server_->end_drain();
  EXPECT_EQ(silent.read_all(), "");
  EXPECT_TRUE(silent.is_closed());
  idle.close(), fresh.close(), busy.close();
  EXPECT_TRUE(eventually([&] { return server_->num_connections() == 0; }));
  EXPECT_THROW(RawSocket(server_->port()).send("GET / HTTP/1.1\r\n\r\n"), UserError);
}

TEST_F(HttpServerTest, TheClientReadsWhatTheServerSends) {
  start(small_limits());
  asio::io_context context;
  const Url url = parse_url(server_->address());
  const auto get = [&](HttpRequest request) {
    auto future = asio::co_spawn(
        context, fetch(context.get_executor(), url, std::move(request), std::chrono::seconds(5)),
        asio::use_future);
    context.restart();
    context.run();
    return future.get();
  };
  EXPECT_EQ(get({.method = "POST", .path = "/p", .query = "q", .body = "hi"}).body, "POST /p?q hi");
  EXPECT_EQ(get({.method = "GET", .path = "/user"}).status, 400);
  EXPECT_EQ(get({.method = "GET", .path = "/stream", .query = "pieces=300&size=1000"}).body.size(),
            300'000u);
  EXPECT_THROW(get({.method = "GET", .path = "/break"}), ConnectionError);
  server_.reset();
  EXPECT_THROW(get({.method = "GET", .path = "/"}), ConnectionError);
}

TEST_F(HttpServerTest, ArbitraryBytesDoNoHarm) {
  HttpServerOptions o = small_limits();
  o.header_timeout = o.body_timeout = milliseconds(50);
  start(o);
  std::mt19937 random(1);
  const std::string seeds[] = {
      "POST /p?q=%41 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
      "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
      "GET /stream?pieces=2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"};
  for (int round = 0; round < 1500; ++round) {
    std::string bytes = seeds[random() % 3];
    for (unsigned change = 0; change <= random() % 5; ++change) {
      const size_t at = random() % bytes.size();
      switch (random() % 4) {
        case 0:
          bytes[at] = static_cast<char>(random());
          break;
        case 1:
          bytes.erase(at, random() % 4);
          break;
        case 2:
          bytes.insert(at, std::string(random() % 6, static_cast<char>(random())));
          break;
        default:
          bytes += bytes.substr(at);
      }
      if (bytes.empty()) bytes.push_back('x');
    }
    if (random() % 3 == 0) bytes.resize(random() % bytes.size());
    RawSocket s(server_->port());
    s.send(bytes);
    const std::string response = random() % 4 == 0 ? s.read_until("\r\n\r\n", 2) : "";
    EXPECT_TRUE(response.empty() || response.starts_with("HTTP/1.1 ")) << response;
  }
  EXPECT_TRUE(eventually([&] { return server_->num_connections() == 0; }));
  expect_alive();
}

TEST(HttpTest, UrlsAndQueries) {
  EXPECT_EQ(parse_url("http://127.0.0.1:30000/").text(), "http://127.0.0.1:30000");
  EXPECT_EQ(parse_url("worker-3:8000").text(), "http://worker-3:8000");
  EXPECT_EQ(parse_url("host").text(), "http://host:80");
  for (const char* bad : {"", "https://x:1", "http://", "http://a b:1", "x:0", "x:65536", "x:1/p",
                          "x:+1", "x:\r\n"}) {
    EXPECT_THROW(parse_url(bad), UserError) << bad;
  }
  EXPECT_EQ(url_decode("a%2Fb+%c3%a9"), "a/b+\u00e9");
  for (const char* bad : {"%", "%4", "%zz", "%-1"}) EXPECT_EQ(url_decode(bad), std::nullopt) << bad;
  EXPECT_EQ(url_decode(url_encode("http://a:1/?x=\n")), "http://a:1/?x=\n");
  const HttpRequest request{.query = "timeout=1.5&url=http%3A%2F%2Fx&flag&e="};
  EXPECT_EQ(request.query_value("timeout"), "1.5");
  EXPECT_EQ(request.query_value("url"), "http://x");
  EXPECT_EQ(request.query_value("flag"), "");
  EXPECT_EQ(request.query_value("e"), "");
  EXPECT_EQ(request.query_value("none"), std::nullopt);
}

}  // namespace
}  // namespace fathom
