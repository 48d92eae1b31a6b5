"""Makes the checkpoint of this folder: two ranks, PyTorch's own writer (torch 2.11.0, CPython 3.11).

usage: make.py OUT_DIRECTORY

Element i of every tensor is i mod 251 (of `fp8`: i mod 7), in row-major order.
"""

import os
import sys
import tempfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor, Shard, init_device_mesh


def values(shape, dtype, period=251):
    count = torch.Size(shape).numel()
    return (torch.arange(count) % period).reshape(shape).to(dtype)


def worker(rank, out, rendezvous):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))

    def sharded(whole, dim):
        local = whole.chunk(2, dim)[rank].contiguous()
        stride = torch.empty(whole.shape).stride()
        return DTensor.from_local(local, mesh, [Shard(dim)], shape=whole.shape, stride=stride)

    padded = torch.full((3, 7), -1.0)
    padded[1:] = values((2, 7), torch.float32)
    state = {
        "rows": sharded(values((5, 8), torch.int32), 0),
        "cols": sharded(values((3, 10), torch.bfloat16), 1),
        "fp8": sharded(values((4, 6), torch.float32, 7).to(torch.float8_e4m3fn), 0),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "view": padded[1:],  # starts inside its storage
        "parameter": torch.nn.Parameter(values((2, 3), torch.float32)),
        "step": 20,  # a pickled object
    }
    dcp.save(state, checkpoint_id=out)
    dist.destroy_process_group()


if __name__ == "__main__":
    target = sys.argv[1]
    with tempfile.TemporaryDirectory() as scratch:
        torch.multiprocessing.spawn(worker, (target, os.path.join(scratch, "r")), nprocs=2)
    with open(os.path.join(target, "metadata.json"), "w") as f:
        f.write('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
