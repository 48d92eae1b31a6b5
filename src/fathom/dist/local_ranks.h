// Ranks as threads of one process, for tests.
#pragma once

#include <exception>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "fathom/dist/group.h"
#include "fathom/dist/socket.h"
#include "fathom/dist/world.h"

namespace fathom::dist {

/// Environments of `size` ranks that meet on a free port of the loopback interface.
inline std::vector<RankEnvironment> local_rank_environments(int size) {
  const Socket listener = listen_on({"127.0.0.1", 0});
  const int port = local_address(listener).port;
  std::vector<RankEnvironment> environments;
  for (int r = 0; r < size; ++r) {
    RankEnvironment e;
    e.rank = e.local_rank = r;
    e.size = e.local_size = size;
    e.master_port = port;
    e.secret = "a secret of the test";
    environments.push_back(e);
  }
  return environments;
}

/// Runs body on every rank. @return what each rank threw, "" where it ended well.
inline std::vector<std::string> run_local_ranks(int size, const std::function<void(World&)>& body,
                                                const WorldOptions& options = {}) {
  const std::vector<RankEnvironment> environments = local_rank_environments(size);
  std::vector<std::string> errors(environments.size());
  std::vector<std::thread> threads;
  for (const RankEnvironment& e : environments) {
    threads.emplace_back([&, e] {
      try {
        const auto world = World::join(e, options);
        try {
          body(*world);
          world->finish();
        } catch (const std::exception& error) {
          world->fail(error.what());
          throw;
        }
      } catch (const std::exception& error) {
        errors[static_cast<size_t>(e.rank)] = error.what();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  return errors;
}

}  // namespace fathom::dist
