// fathom <subcommand> [options]: finds the subcommand, parses its options, runs it.
// Exit codes: 0 done, 1 the work failed, 2 the command line or the configuration was wrong.
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "commands.h"
#include "fathom/base/error.h"
#include "fathom/base/log.h"
#include "fathom/base/process_memory.h"
#include "fathom/config/words.h"
#include "fathom/dist/world.h"
#include "ranks.h"

namespace fathom {
namespace {

constexpr int kDone = 0, kFailed = 1, kWrongCommandLine = 2;

std::string program_help() {
  std::string text =
      "fathom: reinforcement learning of DeepSeek-V4 in one program\n\n"
      "Usage: fathom <subcommand> [options]\n\nSubcommands\n";
  for (const config::CommandInfo& info : config::all_commands()) {
    if (find_run_command(info.command) == nullptr) continue;
    text += "  " + info.name + std::string(18 - info.name.size(), ' ') + info.summary + "\n";
  }
  return text +
         "\n`fathom <subcommand> --help` lists its options. `fathom --version` tells the version.\n"
         "A first run: fathom full-train --config configs/tiny_cpu.json --run-id first\n";
}

std::string not_a_subcommand(const std::string& name) {
  for (const config::UnbuiltCommand& unbuilt : config::unbuilt_commands())
    if (unbuilt.name == name) return "fathom " + name + ": " + unbuilt.sentence;
  std::vector<std::string> names;
  for (const config::CommandInfo& info : config::all_commands()) names.push_back(info.name);
  const std::string nearest = config::nearest_word(name, names);
  return "fathom: there is no subcommand '" + name + "'" +
         (nearest.empty() ? "" : "; did you mean " + nearest + "?") +
         "\n  `fathom --help` lists them.";
}

int run(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h" || words[0] == "help") {
    std::fputs(program_help().c_str(), words.empty() ? stderr : stdout);
    return words.empty() ? kWrongCommandLine : kDone;
  }
  if (words[0] == "--version") {
    std::puts("fathom " FATHOM_VERSION);
    return kDone;
  }
  const auto command = config::find_command(words[0]);
  if (!command) throw ConfigError(not_a_subcommand(words[0]));
  const RunCommand run_command = find_run_command(*command);
  if (run_command == nullptr)
    throw ConfigError("fathom " + words[0] + ": this subcommand is not built yet.");

  const config::ParsedCommand parsed = config::parse_command_line(
      *command, {words.begin() + 1, words.end()}, config::current_environment());
  if (parsed.help) {
    std::fputs(config::help_text(*command).c_str(), stdout);
    return kDone;
  }
  for (const std::string& note : parsed.notes) log_info("note: ", note);
  return run_command(parsed);
}

// A mapped file that another program made shorter: its lost bytes raise this signal.
void on_lost_page(int, siginfo_t* info, void*) {
  // Only what may be called in a signal handler.
  const char text[] =
      "error: a file became shorter while it was read, or its disk failed\n  fix: keep other "
      "programs from writing to the checkpoint that is read, then run the same command again\n";
  [[maybe_unused]] const ssize_t n = ::write(2, text, sizeof text - 1);
  ::_exit(info->si_code == BUS_ADRERR ? kFailed : 128 + SIGBUS);
}

void handle_signals() {
  struct sigaction action {};
  action.sa_sigaction = on_lost_page;
  action.sa_flags = SA_SIGINFO;
  ::sigaction(SIGBUS, &action, nullptr);
  // A limit on the size of files is an error of the write that meets it.
  std::signal(SIGXFSZ, SIG_IGN);
}

}  // namespace
}  // namespace fathom

int main(int argc, char** argv) {
  fathom::keep_freed_memory();
  using namespace fathom;
  handle_signals();
  try {
    const int code = run({argv + 1, argv + argc});
    if (code == kDone && (std::fflush(stdout) != 0 || std::ferror(stdout) != 0))
      return report_failure(kFailed, "standard output could not be written");
    return code;
  } catch (const dist::PeerFailure& e) {
    return report_peer_failure(e.what());
  } catch (const ConfigError& e) {
    return report_failure(kWrongCommandLine, e.what());
  } catch (const std::bad_alloc&) {
    return report_failure(kFailed, "out of memory");
  } catch (const std::exception& e) {
    return report_failure(kFailed, e.what());
  }
}
