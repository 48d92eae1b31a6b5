"""Directories of `prepare-spmd` read by Megatron's own `dist_checkpointing`.

usage: megatron_load.py PATH_TO_FATHOM

Needs the package megatron-core beside torch; without it the test says that it is skipped. Two layouts of a model with
FP4 and FP8 weights are loaded as Megatron's ranks ask for them: whole tensors, tensor parallel halves along both axes,
experts as boxes of the expert axis with gate and up apart. Every value must be the one that torch's reader gives.
"""

import os
import sys
import warnings

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from program import GOLDEN, Checks, run_ok, work_directory  # noqa: E402

MODEL = os.path.join(GOLDEN, "small_official", "model")
LAYOUTS = {
    "one rank": [],
    "TP 2, PP 2, EP 2": ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2",
                         "--expert-model-parallel-size", "2"],
}


def whole_tensors(directory):
    """{key: tensor} by torch.distributed.checkpoint."""
    import torch
    import torch.distributed.checkpoint as dcp
    metadata = dcp.FileSystemReader(directory).read_metadata().state_dict_metadata
    state = {key: torch.empty(tuple(m.size), dtype=m.properties.dtype) for key, m in metadata.items()}
    dcp.load(state, checkpoint_id=directory, no_dist=True)
    return state


def pieces(key, tensor):
    """[(slices, rank offsets, prepended axes)] of the parts that Megatron's ranks would ask for."""
    import torch
    if ".experts.experts.linear_fc1" in key or ".experts.experts.linear_fc2" in key:
        experts, rows = tensor.shape[0], tensor.shape[1]
        halves = 2 if "fc1" in key else 1
        return [((slice(e, e + 1), slice(h * rows // halves, (h + 1) * rows // halves)), ((0, e, experts), (1, h, halves)))
                for e in range(experts) for h in range(halves)]
    if tensor.dim() == 2 and key.endswith(("linear_proj.weight", "wo_b.weight", "linear_fc2.weight")):
        half = tensor.shape[1] // 2
        return [((slice(None), slice(r * half, (r + 1) * half)), ((1, r, 2),)) for r in range(2)]
    if tensor.dim() == 2 and key.endswith(("wq_b.weight", "wo_a.weight", "word_embeddings.weight", "output_layer.weight")):
        half = tensor.shape[0] // 2
        return [((slice(r * half, (r + 1) * half),), ((0, r, 2),)) for r in range(2)]
    assert isinstance(tensor, torch.Tensor)
    return [((), ())]


def check(checks, fathom, work, name, args):
    import torch
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing import ShardedTensor

    saved = os.path.join(work, name.replace(" ", "").replace(",", "_"))
    run_ok(fathom, "prepare-spmd", "--hf-checkpoint", MODEL, "--save", saved, "--model-dir", os.path.join(work, "models"), *args)
    directory = os.path.join(saved, "release")
    expected = whole_tensors(directory)
    wanted, parts = {}, {}
    for key, tensor in expected.items():
        for i, (slices, offsets) in enumerate(pieces(key, tensor)):
            part = tensor[slices] if slices else tensor
            parts[f"{key}#{i}"] = part
            wanted[f"{key}#{i}"] = ShardedTensor.from_rank_offsets(key, torch.zeros_like(part).contiguous(), *offsets)
    loaded = dist_checkpointing.load(wanted, directory)
    for key, part in parts.items():
        got = loaded[key]
        checks.that(got.dtype == part.dtype and torch.equal(got, part), f"{name}: {key} differs")
    common = dist_checkpointing.load_common_state_dict(directory)
    checks.that(common["args"].num_layers == 4 and common["iteration"] == 1, f"{name}: common.pt: {common}")
    print(f"{name}: {len(parts)} parts of {len(expected)} tensors, bit-equal")


def main():
    try:
        import megatron.core  # noqa: F401
    except ImportError:
        print("SKIPPED: there is no megatron-core")
        return
    import torch.distributed as dist
    warnings.filterwarnings("ignore")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    checks = Checks()
    with work_directory("megatron") as work:
        dist.init_process_group("gloo", init_method=f"file://{work}/meeting", rank=0, world_size=1)
        for name, args in LAYOUTS.items():
            check(checks, os.path.abspath(sys.argv[1]), work, name, args)
        dist.destroy_process_group()
    sys.exit(checks.finish())


if __name__ == "__main__":
    main()
