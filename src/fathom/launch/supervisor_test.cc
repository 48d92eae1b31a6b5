#include "fathom/launch/supervisor.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <thread>

namespace fathom {
namespace {

/// Ranks that run a shell script; what is printed on standard error is returned with the code.
struct Result {
  int code;
  std::string text;
};

Result supervise(int num_ranks, const std::string& script, double grace_seconds = 1.0) {
  SupervisorOptions options;
  options.num_ranks = num_ranks;
  options.program = "/bin/sh";
  options.arguments = {"sh", "-c", script};
  options.grace_seconds = grace_seconds;
  testing::internal::CaptureStderr();
  const int code = supervise_ranks(options);
  return {code, testing::internal::GetCapturedStderr()};
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Supervisor, MarksLinesAndSetsVariables) {
  const Result r = supervise(3, "echo me $RANK of $WORLD_SIZE $LOCAL_RANK >&2; printf end >&2");
  EXPECT_EQ(r.code, 0);
  for (const char* line : {"[rank 0] me 0 of 3 0\n", "[rank 1] me 1 of 3 1\n",
                           "[rank 2] me 2 of 3 2\n", "[rank 2] end\n"}) {
    EXPECT_TRUE(contains(r.text, line)) << r.text;
  }
}

TEST(Supervisor, OutputOfRank0PassesThrough) {
  testing::internal::CaptureStdout();
  const Result r = supervise(2, "echo data $RANK");
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "data 0\n");
  EXPECT_EQ(r.text, "[rank 1] data 1\n");
}

TEST(Supervisor, ARankThatFailsEndsTheOthers) {
  const auto start = std::chrono::steady_clock::now();
  const Result r = supervise(3, "test $RANK = 1 && exit 2; exec sleep 60");
  EXPECT_EQ(r.code, 2);
  EXPECT_TRUE(contains(r.text, "error: rank 1 ended with exit code 2")) << r.text;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(15));
}

TEST(Supervisor, AKilledRankIsNamedWithItsSignal) {
  const Result r = supervise(3, "test $RANK = 2 && kill -9 $$; exec sleep 60");
  EXPECT_EQ(r.code, 1);
  EXPECT_TRUE(contains(r.text, "error: rank 2 was ended by signal 9 (Killed)")) << r.text;
}

TEST(Supervisor, SignalsArePassedOn) {
  std::thread sender([pid = ::getpid()] {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, nullptr);
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    ::kill(pid, SIGTERM);
  });
  // A thread that was there before the supervisor would take the signal, so it blocks it as well.
  const Result r = supervise(2, "exec sleep 60");
  sender.join();
  EXPECT_EQ(r.code, 128 + SIGTERM);
  EXPECT_TRUE(contains(r.text, "all 2 ranks have ended")) << r.text;
}

TEST(Supervisor, AMissingProgramIsAnError) {
  SupervisorOptions options;
  options.num_ranks = 2;
  options.program = "/no/such/program";
  options.arguments = {"x"};
  EXPECT_EQ(supervise_ranks(options), 127);
}

TEST(Supervisor, OwnArguments) { EXPECT_FALSE(own_arguments().empty()); }

}  // namespace
}  // namespace fathom
