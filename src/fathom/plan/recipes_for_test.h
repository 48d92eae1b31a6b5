// The layouts of the recipes, for tests.
#pragma once

#include "fathom/plan/model_shapes.h"
#include "fathom/plan/request.h"

namespace fathom {

inline PlanRequest flash_request(const char* machine, dist::MeshShape mesh, int64_t first,
                                 int64_t last) {
  PlanRequest r;
  r.model_name = "flash";
  r.config = *named_shape("flash");
  r.layout = {.mesh = mesh,
              .first_stage_layers = first,
              .last_stage_layers = last,
              .precision = Precision::kParityFp8};
  r.sequence_parallel = true;
  r.machine = *find_machine(machine);
  r.ranks_per_node = mesh.size() % 64 == 0 ? 8 : 4;
  r.engine = {.shares_layout = false, .tp = 8, .dp = 8, .ep = 8, .dp_attention = true};
  r.optimizer_on_host = true;
  return r;
}

inline PlanRequest h200_8x8() { return flash_request("H200", {.tp = 8, .pp = 8, .ep = 8}, 4, 3); }
inline PlanRequest gb300_tp8pp4() {
  return flash_request("GB300", {.tp = 8, .pp = 4, .ep = 8}, 11, 10);
}
inline PlanRequest gb300_tp2pp8cp2() {
  return flash_request("GB300", {.tp = 2, .cp = 2, .pp = 8, .ep = 4}, 4, 3);
}
inline PlanRequest pro_h200_32x8() {
  PlanRequest r = flash_request("H200", {.tp = 8, .dp = 4, .pp = 8, .ep = 32}, 7, 6);
  r.model_name = "pro";
  r.config = *named_shape("pro");
  r.engine.tp = r.engine.dp = r.engine.ep = 32;
  return r;
}

}  // namespace fathom
