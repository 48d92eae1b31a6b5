// What happens when a rank throws, is killed, stands still or never comes, and when strangers call.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <random>

#include "fathom/dist/handshake.h"
#include "fathom/dist/local_ranks.h"

namespace fathom::dist {
namespace {

using std::chrono::milliseconds;

double seconds_since(Deadline start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(RankFailure, OneThatThrowsEndsAllWithItsMessage) {
  const auto start = Clock::now();
  const auto errors = run_local_ranks(4, [](World& world) {
    const Group all = world.everyone();
    all.barrier();
    if (world.rank() == 2) throw UserError("the data is bad");
    all.barrier();
  });
  EXPECT_EQ(errors[2], "the data is bad");
  for (int r : {0, 1, 3}) EXPECT_EQ(errors[static_cast<size_t>(r)], "rank 2: the data is bad");
  EXPECT_LT(seconds_since(start), 10.0);
}

TEST(RankFailure, Rank0ThatThrowsToo) {
  const auto errors = run_local_ranks(3, [](World& world) {
    if (world.rank() == 0) throw UserError("no");
    world.everyone().barrier();
  });
  EXPECT_EQ(errors[1], "rank 0: no");
  EXPECT_EQ(errors[2], "rank 0: no");
}

TEST(RankFailure, OneThatEndsEarlyIsNamed) {
  const std::vector<RankEnvironment> environments = local_rank_environments(2);
  std::thread other([&] { World::join(environments[1], {}); });
  const auto world = World::join(environments[0], {});
  other.join();
  try {
    world->everyone().barrier();
    FAIL() << "the barrier ended";
  } catch (const PeerFailure& e) {
    EXPECT_STREQ(e.what(), "rank 1: ended before the others");
  }
}

TEST(RankFailure, AStandstillIsToldWithTheRanksWaitedFor) {
  WorldOptions options;
  options.operation_timeout = milliseconds(300);
  std::atomic<bool> may_end = false;
  const auto errors = run_local_ranks(
      3,
      [&](World& world) {
        if (world.rank() == 1) {
          while (!may_end) std::this_thread::sleep_for(milliseconds(10));
          return;
        }
        try {
          world.everyone().barrier();
        } catch (const std::exception&) {
          may_end = true;
          throw;
        }
      },
      options);
  const std::string& first = contains(errors[0], "waited") ? errors[0] : errors[2];
  EXPECT_TRUE(contains(first, "barrier: waited 0.3 s for a message from rank 1")) << first;
}

TEST(RankFailure, RanksThatDoNotComeAreNamed) {
  const std::vector<RankEnvironment> environments = local_rank_environments(4);
  WorldOptions options;
  options.join_timeout = milliseconds(800);
  std::vector<std::string> errors(2);
  std::vector<std::thread> threads;
  for (size_t r : {0, 1}) {
    threads.emplace_back([&, r] {
      try {
        World::join(environments[r], options);
      } catch (const std::exception& e) {
        errors[r] = e.what();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::string& e : errors) {
    EXPECT_TRUE(contains(e, "did not come in time: 2, 3 of 4")) << e;
  }
}

TEST(RankFailure, AnotherSecretIsRefused) {
  std::vector<RankEnvironment> environments = local_rank_environments(2);
  environments[1].secret = "another";
  WorldOptions options;
  options.join_timeout = milliseconds(1500);
  std::string error0, error1;
  std::thread other([&] {
    try {
      World::join(environments[1], options);
    } catch (const std::exception& e) {
      error1 = e.what();
    }
  });
  try {
    World::join(environments[0], options);
  } catch (const std::exception& e) {
    error0 = e.what();
  }
  other.join();
  EXPECT_TRUE(contains(error1, "their secret differs")) << error1;
  EXPECT_TRUE(contains(error0, "did not come in time: 1 of 2")) << error0;
}

TEST(RankFailure, StrangersBytesDoNoHarm) {
  const std::vector<RankEnvironment> environments = local_rank_environments(2);
  std::vector<std::thread> threads;
  std::atomic<int> well = 0;
  const auto join = [&](int rank) {
    threads.emplace_back([&, rank] {
      const auto world = World::join(environments[static_cast<size_t>(rank)], {});
      float value = 1.0f;
      world->everyone().sum(&value, 1);
      EXPECT_EQ(value, 2.0f);
      world->finish();
      ++well;
    });
  };
  join(0);
  const Address master = {"127.0.0.1", environments[0].master_port};
  std::mt19937 random(7);
  std::vector<Socket> open;
  for (int i = 0; i < 200; ++i) {
    Socket stranger = connect_to(master, Clock::now() + std::chrono::seconds(5));
    std::string bytes(random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    if (i % 3 == 0) {  // the first message is right, the proof is not
      Hello hello = make_hello(static_cast<int>(random() % 2), 2, kControl);
      bytes = std::string(reinterpret_cast<char*>(&hello), sizeof hello) + bytes;
    }
    if (i % 7 == 0) bytes = "GET / HTTP/1.1\r\n\r\n";
    ::send(stranger.fd(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (i % 2 == 0) open.push_back(std::move(stranger));  // these stay and say no more
  }
  join(1);
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(well, 2);
}

TEST(RankFailure, OnStuckIsCalledWhenARankDoesNotEnd) {
  WorldOptions options;
  options.exit_grace = milliseconds(100);
  std::atomic<int> called = 0;
  options.on_stuck = [&](const std::string& message) {
    EXPECT_EQ(message, "rank 1: gone");
    ++called;
  };
  run_local_ranks(
      2,
      [&](World& world) {
        if (world.rank() == 1) throw UserError("gone");
        const auto start = Clock::now();  // a long computation
        while (called == 0 && seconds_since(start) < 20) {
          std::this_thread::sleep_for(milliseconds(10));
        }
      },
      options);
  EXPECT_GE(called, 1);
}

/// A rank as a process: sums for ever, and tells its pid by being one. Ends with 3 on PeerFailure
/// after writing the message.
[[noreturn]] void run_process(const RankEnvironment& e, int message_fd) {
  try {
    const auto world = World::join(e, {});
    const Group all = world->everyone();
    std::vector<float> data(50'000, 1.0f);
    while (true) all.sum(data.data(), static_cast<int64_t>(data.size()));
  } catch (const PeerFailure& f) {
    const std::string line = std::string(f.what()) + "\n";
    [[maybe_unused]] const ssize_t n = ::write(message_fd, line.data(), line.size());
    ::_exit(3);
  } catch (...) {
    ::_exit(4);
  }
}

TEST(RankFailure, AKilledRankEndsAllProcessesWithItsName) {
  std::mt19937 random(11);
  for (int victim : {0, 1, 2}) {
    const std::vector<RankEnvironment> environments = local_rank_environments(3);
    int pipe_fds[2];
    ASSERT_EQ(::pipe2(pipe_fds, O_CLOEXEC), 0);
    std::vector<pid_t> pids;
    for (const RankEnvironment& e : environments) {
      const pid_t pid = ::fork();
      if (pid == 0) run_process(e, pipe_fds[1]);
      pids.push_back(pid);
    }
    ::close(pipe_fds[1]);
    std::this_thread::sleep_for(milliseconds(400 + random() % 300));
    ::kill(pids[static_cast<size_t>(victim)], SIGKILL);
    const auto start = Clock::now();
    for (size_t r = 0; r < pids.size(); ++r) {
      int status = 0;
      ASSERT_EQ(::waitpid(pids[r], &status, 0), pids[r]);
      if (static_cast<int>(r) != victim) {
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 3) << "rank " << r;
      }
    }
    EXPECT_LT(seconds_since(start), 20.0);
    std::string text(4096, '\0');
    text.resize(static_cast<size_t>(std::max<ssize_t>(0, ::read(pipe_fds[0], text.data(), 4096))));
    const std::string expected = str_cat("rank ", victim, " has died");
    EXPECT_TRUE(contains(text, expected)) << text;
    ::close(pipe_fds[0]);
  }
}

}  // namespace
}  // namespace fathom::dist
