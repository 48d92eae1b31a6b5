"""Our torch_dist directories against PyTorch's own distributed checkpoint reader, and the reverse.

usage: dcp.py PATH_TO_FATHOM PATH_TO_WRITE_TRAINING_STATE

1. `prepare-spmd` of every golden model (plain, FP4 and FP8): `torch.distributed.checkpoint.load` without
   process groups fills every tensor of .metadata; each of them, cut back into official tensors, has the
   bits of the safetensors source, which is decoded here, in torch, by the published rules.
2. The same directory read by two ranks that each hold a shard of every matrix.
3. A training checkpoint: fp32 masters and Adam moments under the keys of Megatron's distributed optimizer.
4. `common.pt` and `.metadata` load with plain Python, with the types that Megatron expects.
"""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

warnings.filterwarnings("ignore")
GOLDEN = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden")
MODELS = ["small", "small_official", "small_base", "small_sgl"]
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def read_source(directory):
    """{name: tensor} of all files, quantised weights decoded to bf16, names as stored."""
    stored = {}
    for name in sorted(os.listdir(directory)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(directory, name), "pt") as f:
                for key in f.keys():
                    stored[key] = f.get_tensor(key)
    decoded = {}
    for name, value in stored.items():
        if name.endswith((".scale", ".weight_scale_inv")):
            continue
        stem = name[: -len(".weight")] if name.endswith(".weight") else name
        scale = stored.get(stem + ".scale", stored.get(stem + ".weight_scale_inv"))
        if scale is not None and value.dtype == torch.float8_e4m3fn:
            rows = scale.float().repeat_interleave(128, 0)[: value.shape[0]]
            value = (value.float() * rows.repeat_interleave(128, 1)[:, : value.shape[1]]).bfloat16()
        elif scale is not None and value.dtype in (torch.int8, torch.uint8):
            codes = value.view(torch.uint8)
            pairs = torch.stack([codes & 15, codes >> 4], -1).reshape(value.shape[0], -1)
            if scale.dtype == torch.uint8:
                scale = scale.view(torch.float8_e8m0fnu)
            value = (FP4[pairs.long()] * scale.float().repeat_interleave(32, 1)).bfloat16()
        decoded[name] = value
    return decoded


# Both dialects to Megatron keys; written anew here, so that a slip in the program's table is seen.
RULES = [
    (r"^(?:model\.)?embed(?:_tokens)?\.weight$", "embedding.word_embeddings.weight"),
    (r"^(?:lm_)?head\.weight$", "output_layer.weight"),
    (r"^(?:model\.)?norm\.weight$", "decoder.final_layernorm.weight"),
    (r"^(?:model\.)?(hc_head_\w+)$", r"decoder.hc_head_params.\1"),
    (r"^mtp\.(\d+)\.norm\.weight$", r"mtp.layers.\1.final_layernorm.weight"),
    (r"^mtp\.(\d+)\.(hc_head_\w+)$", r"mtp.layers.\1.hc_head_params.\2"),
    (r"^mtp\.(\d+)\.((?:e_proj|h_proj|enorm|hnorm)\.weight)$", r"mtp.layers.\1.\2"),
    (r"^(?:model\.)?layers\.(\d+)\.", r"decoder.layers.\1."),
    (r"^mtp\.(\d+)\.(?!layers)", r"mtp.layers.\1.transformer_layer."),
]
LEAVES = [
    (r"\.(?:attn_norm|input_layernorm)\.weight$", ".input_layernorm.weight"),
    (r"\.(?:ffn_norm|post_attention_layernorm)\.weight$", ".pre_mlp_layernorm.weight"),
    (r"\.(?:self_)?attn\.", ".self_attention."),
    (r"\.indexer\.(wq_b|weights_proj)\.weight$", r".indexer.linear_\1.weight"),
    (r"\.(?:ffn|mlp)\.gate\.weight$", ".mlp.router.weight"),
    (r"\.(?:ffn|mlp)\.gate\.(?:bias|e_score_correction_bias)$", ".mlp.router.expert_bias"),
    (r"\.(?:ffn\.gate|mlp\.topk)\.tid2eid$", ".mlp.router.tid2eid"),
]
MATRIX = r"\.(?:ffn|mlp)\.(shared_experts|experts\.(\d+))\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$"


def place(name):
    """Official or SGLang name -> (key, expert or None, half or None)."""
    key = name
    for pattern, replacement in RULES:
        key, count = re.subn(pattern, replacement, name)
        if count:
            break
    for pattern, replacement in LEAVES:
        key = re.sub(pattern, replacement, key)
    match = re.search(MATRIX, key)
    if not match:
        return key, None, None
    part = {"w1": 0, "gate_proj": 0, "w3": 1, "up_proj": 1}.get(match[3])
    group = "shared_experts" if match[2] is None else "experts.experts"
    leaf = "linear_fc2" if part is None else "linear_fc1"
    expert = None if match[2] is None else int(match[2])
    return f"{key[: match.start()]}.mlp.{group}.{leaf}.weight", expert, part


def expected_tensors(source, num_layers, float_type=torch.bfloat16):
    """{Megatron key: {(expert, half): tensor in the stored type}}."""
    out = {}
    for name, value in source.items():
        # The SGLang dialect appends MTP modules to the layers.
        sgl_mtp = re.match(r"model\.layers\.(\d+)\.", name)
        if sgl_mtp and int(sgl_mtp[1]) >= num_layers:
            rest = name[sgl_mtp.end() :].replace("shared_head.norm", "norm")
            name = f"mtp.{int(sgl_mtp[1]) - num_layers}.{rest}"
        key, expert, half = place(name)
        leaf = key.rsplit(".", 1)[-1]
        if leaf == "tid2eid":
            value = value.to(torch.int32)
        elif leaf in ("attn_sink", "ape", "expert_bias") or leaf.startswith("hc_"):
            value = value.to(torch.float32)
        else:
            value = value.to(float_type)
        out.setdefault(key, {})[(expert, half)] = value
    return out


def assemble(pieces):
    """The whole Megatron tensor from its official pieces."""
    if set(pieces) == {(None, None)}:
        return pieces[(None, None)]

    def halves(expert):
        if (expert, None) in pieces:
            return pieces[(expert, None)]
        return torch.cat([pieces[(expert, 0)], pieces[(expert, 1)]])

    experts = sorted({e for e, _ in pieces if e is not None})
    return torch.stack([halves(e) for e in experts]) if experts else halves(None)


def same_bits(a, b):
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    )


def empty_state(metadata):
    """One target per stored tensor, filled with something that is not the answer."""
    state = {}
    for key, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), key
        state[key] = torch.full(tuple(entry.size), 77, dtype=entry.properties.dtype)
    return state


def check_model(fathom, name, directory):
    model = os.path.join(GOLDEN, name, "model")
    with open(os.path.join(model, "config.json")) as f:
        num_layers = json.load(f)["num_hidden_layers"]
    subprocess.run(
        [fathom, "prepare-spmd", "--hf-checkpoint", model, "--save", directory],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    release = os.path.join(directory, "release")
    with open(os.path.join(directory, "latest_checkpointed_iteration.txt")) as f:
        assert f.read().strip() == "release"

    reader = dcp.FileSystemReader(release)
    state = empty_state(reader.read_metadata())
    dcp.load(state, storage_reader=reader, no_dist=True)
    expected = expected_tensors(read_source(model), num_layers)
    assert set(state) == set(expected), set(state) ^ set(expected)
    for key, pieces in expected.items():
        assert same_bits(state[key], assemble(pieces)), key

    with open(os.path.join(release, "metadata.json")) as f:
        assert json.load(f) == {
            "sharded_backend": "torch_dist", "sharded_backend_version": 1,
            "common_backend": "torch", "common_backend_version": 1,
        }
    common = torch.load(os.path.join(release, "common.pt"), weights_only=False)
    assert isinstance(common["args"], argparse.Namespace)
    assert common["args"].num_layers == num_layers and common["iteration"] == 1
    with torch.serialization.safe_globals([argparse.Namespace]):
        torch.load(os.path.join(release, "common.pt"), weights_only=True)
    with open(os.path.join(release, ".metadata"), "rb") as f:
        metadata = pickle.load(f)
    assert isinstance(metadata, Metadata) and metadata.version == "1.0.0"
    again = pickle.loads(pickle.dumps(metadata))
    assert again == metadata
    print(f"{name}: {len(state)} tensors, every one bit-equal")
    return state


def shard_worker(rank, directory, port_file, whole_file):
    from torch.distributed.tensor import DTensor, Shard, init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = torch.load(whole_file)
    reader = dcp.FileSystemReader(directory)
    state = {}
    for key, value in whole.items():
        for dim, size in enumerate(value.shape):
            if size % 2 == 0:
                half = torch.full_like(value.chunk(2, dim)[rank], 77)
                state[key] = DTensor.from_local(half, mesh, [Shard(dim)])
                break
    dcp.load(state, storage_reader=reader)
    for key, value in state.items():
        dim = value.placements[0].dim
        assert same_bits(value.to_local(), whole[key].chunk(2, dim)[rank].contiguous()), key
    print(f"rank {rank}: {len(state)} shards bit-equal", flush=True)
    dist.destroy_process_group()


def check_two_ranks(directory, whole, scratch):
    whole_file = os.path.join(scratch, "whole.pt")
    torch.save(whole, whole_file)
    torch.multiprocessing.spawn(
        shard_worker, (directory, os.path.join(scratch, "rendezvous"), whole_file), nprocs=2
    )


def check_training_state(writer, directory):
    model = os.path.join(GOLDEN, "small", "model")
    with open(os.path.join(model, "config.json")) as f:
        num_layers = json.load(f)["num_hidden_layers"]
    subprocess.run([writer, model, directory], check=True)
    with open(os.path.join(directory, "latest_checkpointed_iteration.txt")) as f:
        assert f.read().strip() == "19"
    step = os.path.join(directory, "iter_0000019")
    reader = dcp.FileSystemReader(step)
    state = empty_state(reader.read_metadata())
    dcp.load(state, storage_reader=reader, no_dist=True)
    seen = 0
    for key, pieces in expected_tensors(read_source(model), num_layers, torch.float32).items():
        master = assemble(pieces)
        assert same_bits(state.pop(key), master), key
        frozen = ".indexer." in key or key.endswith(("expert_bias", "tid2eid"))
        assert (f"optimizer.state.param.{key}" in state) != frozen, key
        if not frozen:
            for name, value in (("param", master), ("exp_avg", -master), ("exp_avg_sq", master * master)):
                assert same_bits(state.pop(f"optimizer.state.{name}.{key}"), value), (name, key)
                seen += 1
    assert not state, state.keys()
    common = torch.load(os.path.join(step, "common.pt"), weights_only=False)
    assert common["iteration"] == 19
    assert common["content_metadata"]["distrib_optim_sharding_type"] == "fully_reshardable"
    print(f"training checkpoint: {seen} optimizer tensors bit-equal")


def main():
    fathom = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        for name in MODELS:
            directory = os.path.join(scratch, name)
            state = check_model(fathom, name, directory)
            if name == "small_official":
                check_two_ranks(os.path.join(directory, "release"), state, scratch)
        check_training_state(os.path.abspath(sys.argv[2]), os.path.join(scratch, "run"))


if __name__ == "__main__":
    main()
