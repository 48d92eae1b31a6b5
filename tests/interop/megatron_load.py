"""Directories of `prepare-spmd` read by Megatron's own `dist_checkpointing`, and its directories read by us.

usage: megatron_load.py PATH_TO_FATHOM PATH_TO_WRITE_TRAINING_STATE

Needs the package megatron-core beside torch; without it the test says that it is skipped. Two layouts of a model with
FP4 and FP8 weights are loaded as Megatron's ranks ask for them: whole tensors, tensor parallel halves along both axes,
experts as boxes of the expert axis with gate and up apart. Every value must be the one that torch's reader gives.
Then two ranks of Megatron save those parts again, each its own; `inspect --diff` finds no difference, and `export-hf`
makes of both directories the same files. Last, masters and Adam moments of a training checkpoint are loaded.
"""

import os
import subprocess
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


def sharded_parts(expected, targets):
    """{name: ShardedTensor} of all parts and {name: what it must hold}; targets(part) makes the memory."""
    from megatron.core.dist_checkpointing import ShardedTensor

    wanted, parts = {}, {}
    for key, tensor in expected.items():
        for i, (slices, offsets) in enumerate(pieces(key, tensor)):
            part = (tensor[slices] if slices else tensor).contiguous()
            parts[f"{key}#{i}"] = part
            wanted[f"{key}#{i}"] = ShardedTensor.from_rank_offsets(key, targets(part), *offsets)
    return wanted, parts


def load_and_compare(checks, what, directory):
    import torch
    from megatron.core import dist_checkpointing

    expected = whole_tensors(directory)
    wanted, parts = sharded_parts(expected, torch.zeros_like)
    loaded = dist_checkpointing.load(wanted, directory)
    for key, part in parts.items():
        got = loaded[key]
        checks.that(got.dtype == part.dtype and torch.equal(got, part), f"{what}: {key} differs")
    print(f"{what}: {len(parts)} parts of {len(expected)} tensors, bit-equal", flush=True)
    return expected


def check_load(checks, fathom, work, name, args):
    from megatron.core import dist_checkpointing

    saved = os.path.join(work, name.replace(" ", "").replace(",", "_"))
    run_ok(fathom, "prepare-spmd", "--hf-checkpoint", MODEL, "--save", saved, "--model-dir", os.path.join(work, "models"), *args)
    directory = os.path.join(saved, "release")
    load_and_compare(checks, name, directory)
    common = dist_checkpointing.load_common_state_dict(directory)
    checks.that(common["args"].num_layers == 4 and common["iteration"] == 1, f"{name}: common.pt: {common}")
    return directory


def save_as_rank(rank, ours, theirs, meeting):
    """One of two ranks of Megatron: the parts in turn."""
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # its writers are forks, which must not wait for threads that stayed behind
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    if not torch.cuda.is_available():
        # Its writer waits for a GPU and sends its ranks' failures through one, also when all tensors are in main memory.
        torch.cuda.synchronize = lambda: None
        torch.cuda.current_device = lambda: "cpu"
    wanted, _ = sharded_parts(whole_tensors(ours), torch.clone)
    mine = {name: t for i, (name, t) in enumerate(sorted(wanted.items())) if i % 2 == rank}
    mine["iteration"] = 1
    dist_checkpointing.save(mine, theirs)
    dist.barrier()
    dist.destroy_process_group()


def check_save(checks, fathom, work, ours):
    import torch

    theirs = os.path.join(work, "theirs")
    os.makedirs(theirs)
    torch.multiprocessing.spawn(save_as_rank, (ours, theirs, os.path.join(work, "meeting2")), nprocs=2)
    run_ok(fathom, "inspect", "--diff", ours, theirs)
    exported = []
    for directory in (ours, theirs):
        target = os.path.join(work, f"exported{len(exported)}")
        run_ok(fathom, "export-hf", "--load", directory, "--hf-checkpoint", MODEL, "--output", target)
        exported.append({})
        for name in sorted(os.listdir(target)):
            with open(os.path.join(target, name), "rb") as file:
                exported[-1][name] = file.read()
    checks.that(exported[0] == exported[1] and len(exported[0]) > 1, f"other exports: {[list(e) for e in exported]}")
    files = sum(name.endswith(".distcp") for name in os.listdir(theirs))
    print(f"saved by two ranks of Megatron: {files} files, no difference, the same export", flush=True)


def check_training_state(checks, writer, work):
    run = os.path.join(work, "run")
    subprocess.run([writer, os.path.join(GOLDEN, "small", "model"), run], check=True)
    loaded = load_and_compare(checks, "training checkpoint", os.path.join(run, "iter_0000019"))
    checks.that(any(key.startswith("optimizer.state.exp_avg_sq.") for key in loaded), "no Adam moments")


def main():
    try:
        import megatron.core
    except ImportError:
        print("SKIPPED: there is no megatron-core")
        return
    import torch.distributed as dist
    warnings.filterwarnings("ignore")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    print(f"megatron-core {megatron.core.__version__}")
    fathom, writer = map(os.path.abspath, sys.argv[1:3])
    checks = Checks()
    with work_directory("megatron") as work:
        dist.init_process_group("gloo", init_method=f"file://{work}/meeting", rank=0, world_size=1)
        for name, args in LAYOUTS.items():
            directory = check_load(checks, fathom, work, name, args)
        check_training_state(checks, writer, work)
        dist.destroy_process_group()
        check_save(checks, fathom, work, directory)
    sys.exit(checks.finish())


if __name__ == "__main__":
    main()
