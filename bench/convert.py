"""Speed and memory of the conversion to torch_dist, beside a plain copy's and Python's.

usage: convert.py PATH_TO_FATHOM [--gb 4] [--dir DIR] [--threads N] [--repeats 2] [--fp4] [--python PYTHON]
                  [--load-bench PATH] [--keep]

Makes a checkpoint of about --gb gigabytes (Flash's widths, fewer layers and experts, random weights), then measures
each of these with the input out of the page cache:
  plain    one process reads the input's bytes and writes the output's, 8 MB at a time, with a flush at the end
  fathom   prepare-spmd; its bytes are those of /proc/PID/io
  python   the same numbers by safetensors, torch and torch.distributed.checkpoint (needs --python with the three)
  load     load_bench: masters from the torch_dist directory and from the checkpoint, beside reading the files
The fastest of --repeats counts; CPU seconds stand beside wall seconds, for machines that do other work too.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "tests", "tools"))
import synthetic_checkpoint  # noqa: E402

PIECE = 8 << 20


def weight_files(directory):
    return sorted(os.path.join(directory, n) for n in os.listdir(directory) if n.endswith((".safetensors", ".distcp")))


def forget(files):
    """Out of the page cache; what was written is flushed first."""
    for name in files:
        fd = os.open(name, os.O_RDONLY)
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(args, **kwargs):
    """Runs to the end: wall and CPU seconds, peak bytes, bytes asked of and taken from the disk."""
    begin = time.monotonic()
    process = subprocess.Popen(args, stdout=subprocess.DEVNULL, **kwargs)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    seconds = time.monotonic() - begin
    with open(f"/proc/{process.pid}/io", encoding="ascii") as file:
        io = dict(line.split(": ") for line in file.read().splitlines())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{args[0]} ended with {process.returncode}")
    return {"seconds": seconds, "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_rss_bytes": usage.ru_maxrss * 1024,
            "bytes_read": int(io["rchar"]), "bytes_written": int(io["wchar"]), "disk_read": int(io["read_bytes"]),
            "disk_written": int(io["write_bytes"])}


def plain(argument):
    """In a process of its own: reads the files, writes as many bytes as are asked for."""
    job = json.loads(argument)
    buffer = memoryview(bytearray(PIECE))
    for name in job["read"]:
        with open(name, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with open(job["write"], "wb", buffering=0) as file:
        left = job["bytes"]
        while left > 0:
            left -= file.write(buffer[:min(PIECE, left)])
        os.fsync(file.fileno())


def python_conversion(argument):
    """The state dict in BF16 by torch, saved by torch.distributed.checkpoint. Names stay as they are."""
    import torch
    import torch.distributed.checkpoint as dcp
    from safetensors import safe_open

    job = json.loads(argument)
    torch.set_num_threads(job["threads"])
    fp4 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])
    with open(os.path.join(job["model"], "model.safetensors.index.json"), encoding="utf-8") as file:
        weight_map = json.load(file)["weight_map"]
    files, state = {}, {}

    def get(name):
        shard = weight_map[name]
        if shard not in files:
            files[shard] = safe_open(os.path.join(job["model"], shard), framework="pt")
        return files[shard].get_tensor(name)

    for name in weight_map:
        if name.endswith(".scale"):
            continue
        weight = get(name)
        scale_name = name.removesuffix(".weight") + ".scale"
        if scale_name in weight_map:
            scale = get(scale_name).float()
            if weight.dtype == torch.float8_e4m3fn:
                rows, columns = weight.shape
                scale = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
                weight = (weight.float() * scale).bfloat16()
            else:
                codes = weight.view(torch.uint8)
                pairs = torch.stack([fp4[(codes & 15).long()], fp4[(codes >> 4).long()]], dim=-1).flatten(1)
                weight = (pairs * scale.repeat_interleave(32, 1)).bfloat16()
        elif weight.dtype == torch.int64:
            weight = weight.int()
        state[name] = weight
    dcp.save(state, storage_writer=dcp.FileSystemWriter(job["output"], thread_count=job["threads"]), no_dist=True)


def best(runs):
    return min(runs, key=lambda run: run["seconds"])


def make_checkpoint(path, gigabytes, fp4):
    """Two layers and the MTP module of Flash's widths with as many experts as fit."""
    def size(experts):
        tensors, _, _ = synthetic_checkpoint.describe("flash", 2, experts, not fp4)
        return sum(map(synthetic_checkpoint.num_bytes, tensors))
    experts = 6
    while experts < 256 and size(experts + 1) <= gigabytes * 1e9:
        experts += 1
    return synthetic_checkpoint.make("flash", path, layers=2, experts=experts, fill=True, fp8=not fp4)[1]


def main():
    if sys.argv[1] == "--plain":
        return plain(sys.argv[2])
    if sys.argv[1] == "--python-conversion":
        return python_conversion(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fathom")
    parser.add_argument("--gb", type=float, default=4)
    parser.add_argument("--dir", default=".")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--fp4", action="store_true")
    parser.add_argument("--python", help="an interpreter with torch and safetensors")
    parser.add_argument("--load-bench")
    parser.add_argument("--keep", action="store_true")
    args = parser.parse_args()
    work = os.path.join(args.dir, "convert_bench")
    model, output, scratch = (os.path.join(work, n) for n in ("model", "torch_dist", "scratch"))
    shutil.rmtree(output, ignore_errors=True)
    if not os.path.exists(os.path.join(model, "model.safetensors.index.json")):
        make_checkpoint(model, args.gb, args.fp4)
    inputs = weight_files(model)
    in_bytes = sum(map(os.path.getsize, inputs))

    runs = {"fathom": [], "plain": [], "python": []}
    for _ in range(args.repeats):
        shutil.rmtree(output, ignore_errors=True)
        forget(inputs)
        runs["fathom"].append(measure([args.fathom, "prepare-spmd", "--hf-checkpoint", model, "--save", output, "--model-dir",
                                       os.path.join(work, "models"), "--threads", str(args.threads)],
                                      stderr=subprocess.DEVNULL))
        outputs = weight_files(os.path.join(output, "release"))
        out_bytes = sum(map(os.path.getsize, outputs))
        forget(inputs + outputs)
        job = json.dumps({"read": inputs, "write": scratch, "bytes": out_bytes})
        runs["plain"].append(measure([sys.executable, __file__, "--plain", job]))
        os.remove(scratch)
    if args.python:
        forget(inputs + outputs)
        job = json.dumps({"model": model, "output": scratch, "threads": args.threads})
        runs["python"].append(measure([args.python, __file__, "--python-conversion", job]))
        shutil.rmtree(scratch)
    ours, base = best(runs["fathom"]), best(runs["plain"])
    print(f"input {in_bytes} bytes, output {out_bytes} bytes, {args.threads} threads")
    for name, results in runs.items():
        for r in results:
            print(f"{name:7} {r['seconds']:7.1f} s wall {r['cpu_seconds']:7.1f} s CPU {r['peak_rss_bytes'] / 1e9:6.2f} GB peak, "
                  f"read {r['bytes_read']}, written {r['bytes_written']} "
                  f"(disk {r['disk_read']}, {r['disk_written']})")
    print(f"bytes read / input     {ours['bytes_read'] / in_bytes:.4f}")
    print(f"bytes written / output {ours['bytes_written'] / out_bytes:.4f}")
    print(f"wall / plain           {ours['seconds'] / base['seconds']:.2f}")
    print(f"peak RSS               {ours['peak_rss_bytes'] / 1e9:.2f} GB")
    if runs["python"]:
        python = best(runs["python"])
        print(f"python / fathom        {python['seconds'] / ours['seconds']:.1f} wall, "
              f"{python['cpu_seconds'] / ours['cpu_seconds']:.1f} CPU")
    if args.load_bench:
        subprocess.run([args.load_bench, os.path.join(output, "release"), model, str(args.threads)], check=True)
    if not args.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
