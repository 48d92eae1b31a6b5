// Who connects proves that it belongs to the run: both sides show that they know the run's secret,
// without sending it, and say which rank they are. Messages have fixed lengths, so a stranger's
// bytes are recognised after the first of them and nothing of a wrong length is ever read.
//
//   connecting side -> Hello    (48 bytes)
//   accepting side  -> Reply    (56 bytes), only after a Hello that is well formed
//   connecting side -> Proof    (32 bytes)
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "fathom/dist/socket.h"

namespace fathom::dist {

using Nonce = std::array<uint8_t, 16>;
using Proof = std::array<uint8_t, 32>;

struct Hello {
  std::array<char, 8> magic;
  uint32_t rank, size;  // of the connecting side
  uint64_t purpose;     // kControl or kData
  Nonce nonce;
  uint64_t reserved;
};
static_assert(sizeof(Hello) == 48);

struct Reply {
  std::array<char, 8> magic;
  Nonce nonce;
  Proof proof;
};
static_assert(sizeof(Reply) == 56);

constexpr uint64_t kControl = 1, kData = 2;

Hello make_hello(int rank, int size, uint64_t purpose);
/// Whether the bytes are a Hello of our program for a world of `size`.
bool is_valid_hello(const Hello& hello, int size, uint64_t purpose);
Reply make_reply(const std::string& secret, const Hello& hello);
/// The connecting side's proof; equals what the accepting side expects only with the same secret.
Proof make_proof(const std::string& secret, const Hello& hello, const Nonce& reply_nonce);
bool is_same(const Proof& a, const Proof& b);  // in constant time

/// The connecting side, from Hello to Proof.
/// Errors: ConnectionError when the other side is none of ours or has another secret.
void shake_hands_as_client(const Socket& socket, const std::string& secret, int rank, int size,
                           uint64_t purpose, Deadline deadline);
/// The accepting side. @return the rank that has connected, -1 when it was none of ours.
int shake_hands_as_server(const Socket& socket, const std::string& secret, int size,
                          uint64_t purpose, Deadline deadline);

}  // namespace fathom::dist
