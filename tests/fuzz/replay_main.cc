// Runs a harness without libFuzzer: every file of the corpus, then mutations of them for a few
// seconds. The mutations depend on the seed alone, the number of them on the time.
//   <harness> CORPUS_DIRECTORY [SECONDS] [SEED]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

#include "fuzz.h"

namespace {

using Bytes = std::vector<uint8_t>;

std::vector<Bytes> read_corpus(const std::string& directory) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::directory_iterator(directory))
    if (entry.is_regular_file()) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

class Mutator {
 public:
  explicit Mutator(uint64_t seed) : random_(seed) {}

  Bytes mutate(const std::vector<Bytes>& corpus) {
    Bytes bytes = corpus[below(corpus.size())];
    for (size_t i = 1 + below(4); i-- > 0;) step(bytes, corpus);
    return bytes;
  }

 private:
  size_t below(size_t n) { return n == 0 ? 0 : static_cast<size_t>(random_() % n); }

  void step(Bytes& bytes, const std::vector<Bytes>& corpus) {
    const size_t at = below(bytes.size() + 1);
    const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    static constexpr uint8_t kNotable[] = {0, 1, 0x7F, 0x80, 0xFF, '"', '{', '[', '9', '-'};
    switch (below(7)) {
      case 0:
        if (at < bytes.size()) bytes[at] ^= static_cast<uint8_t>(1u << below(8));
        break;
      case 1:
        if (at < bytes.size()) bytes[at] = kNotable[below(std::size(kNotable))];
        break;
      case 2:
        bytes.insert(place, 1 + below(8), kNotable[below(std::size(kNotable))]);
        break;
      case 3:  // cut out
        bytes.erase(place, place + static_cast<std::ptrdiff_t>(below(bytes.size() - at + 1)));
        break;
      case 4:  // cut off
        bytes.resize(at);
        break;
      case 5: {  // repeat a piece
        const size_t length = below(std::min<size_t>(bytes.size() - at, 64) + 1);
        const Bytes piece(place, place + static_cast<std::ptrdiff_t>(length));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), piece.begin(), piece.end());
        break;
      }
      default: {  // a piece of another input
        const Bytes& other = corpus[below(corpus.size())];
        const size_t from = below(other.size() + 1);
        const size_t length = below(std::min<size_t>(other.size() - from, 64) + 1);
        bytes.insert(place, other.begin() + static_cast<std::ptrdiff_t>(from),
                     other.begin() + static_cast<std::ptrdiff_t>(from + length));
      }
    }
  }

  std::mt19937_64 random_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_DIRECTORY [SECONDS] [SEED]\n", argv[0]);
    return 2;
  }
  const std::vector<Bytes> corpus = read_corpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "%s is empty\n", argv[1]);
    return 1;
  }
  for (const Bytes& bytes : corpus) LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
  const double seconds = argc > 2 ? std::strtod(argv[2], nullptr) : 2.0;
  const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
  Mutator mutator(seed);
  const auto start = std::chrono::steady_clock::now();
  const auto end = start + std::chrono::duration<double>(seconds);
  int64_t runs = 0;
  while (std::chrono::steady_clock::now() < end) {
    const Bytes bytes = mutator.mutate(corpus);
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++runs;
  }
  std::printf("%zu files, %lld mutations of seed %llu\n", corpus.size(),
              static_cast<long long>(runs), static_cast<unsigned long long>(seed));
  return 0;
}
