// The two builds of router_cpu.cc.
#pragma once

#include "fathom/kernels/router/router.h"

namespace fathom {

#define FATHOM_DECLARE_ROUTER(isa)                                                          \
  namespace isa {                                                                           \
  /* Tokens [begin, end); scores is scratch of [E]. Returns the first token with a score */ \
  /* that is NaN or with weights that are not finite, or -1. Indices are trusted. */        \
  int64_t router_fwd_tokens(const RouterFwd& p, int64_t begin, int64_t end, float* scores); \
  void router_bwd_tokens(const RouterBwd& p, int64_t begin, int64_t end);                   \
  }
FATHOM_DECLARE_ROUTER(avx2)
FATHOM_DECLARE_ROUTER(avx512)
#undef FATHOM_DECLARE_ROUTER

}  // namespace fathom
