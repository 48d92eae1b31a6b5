#include "fathom/dist/handshake.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/rand.h>

#include <cstring>

namespace fathom::dist {
namespace {

constexpr std::array<char, 8> kMagic = {'F', 'A', 'T', 'H', 'R', 'N', 'K', '1'};

Nonce make_nonce() {
  Nonce nonce;
  FATHOM_ASSERT(RAND_bytes(nonce.data(), static_cast<int>(nonce.size())) == 1);
  return nonce;
}

Proof prove(const std::string& secret, const std::string& side, const Hello& hello,
            const Nonce& reply_nonce) {
  std::string text = side;
  text.append(reinterpret_cast<const char*>(&hello), sizeof hello);
  text.append(reinterpret_cast<const char*>(reply_nonce.data()), reply_nonce.size());
  Proof proof{};
  unsigned length = 0;
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), proof.data(), &length);
  FATHOM_ASSERT(length == proof.size());
  return proof;
}

}  // namespace

Hello make_hello(int rank, int size, uint64_t purpose) {
  Hello hello{};
  hello.magic = kMagic;
  hello.rank = static_cast<uint32_t>(rank);
  hello.size = static_cast<uint32_t>(size);
  hello.purpose = purpose;
  hello.nonce = make_nonce();
  return hello;
}

bool is_valid_hello(const Hello& hello, int size, uint64_t purpose) {
  return hello.magic == kMagic && hello.size == static_cast<uint32_t>(size) &&
         hello.rank < hello.size && hello.purpose == purpose;
}

Reply make_reply(const std::string& secret, const Hello& hello) {
  Reply reply{};
  reply.magic = kMagic;
  reply.nonce = make_nonce();
  reply.proof = prove(secret, "accepting", hello, reply.nonce);
  return reply;
}

Proof make_proof(const std::string& secret, const Hello& hello, const Nonce& reply_nonce) {
  return prove(secret, "connecting", hello, reply_nonce);
}

bool is_same(const Proof& a, const Proof& b) {
  return CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

void shake_hands_as_client(const Socket& socket, const std::string& secret, int rank, int size,
                           uint64_t purpose, Deadline deadline) {
  const std::string what = "the handshake";
  const Hello hello = make_hello(rank, size, purpose);
  send_all(socket, &hello, sizeof hello, deadline, what);
  Reply reply;
  recv_all(socket, &reply, sizeof reply, deadline, what);
  if (reply.magic != kMagic) throw ConnectionError("another program answers there");
  if (!is_same(reply.proof, prove(secret, "accepting", hello, reply.nonce))) {
    throw ConnectionError("ranks of another run answer there (their secret differs)");
  }
  const Proof proof = make_proof(secret, hello, reply.nonce);
  send_all(socket, proof.data(), sizeof proof, deadline, what);
}

int shake_hands_as_server(const Socket& socket, const std::string& secret, int size,
                          uint64_t purpose, Deadline deadline) {
  try {
    Hello hello;
    recv_all(socket, &hello, sizeof hello, deadline, "the handshake");
    if (!is_valid_hello(hello, size, purpose)) return -1;
    const Reply reply = make_reply(secret, hello);
    send_all(socket, &reply, sizeof reply, deadline, "the handshake");
    Proof proof;
    recv_all(socket, &proof, sizeof proof, deadline, "the handshake");
    const bool ours = is_same(proof, make_proof(secret, hello, reply.nonce));
    return ours ? static_cast<int>(hello.rank) : -1;
  } catch (const ConnectionError&) {
    return -1;
  }
}

}  // namespace fathom::dist
