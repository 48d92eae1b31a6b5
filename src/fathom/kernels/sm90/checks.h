// Checks and timings of the Hopper kernels, one pair a family (kernels_sm90_bench).
#pragma once

namespace fathom::sm90 {

void check_gemm();
void time_gemm(bool all_variants);
void check_attention();
void time_attention(bool all_variants);
void check_indexer();
void time_indexer();

}  // namespace fathom::sm90
