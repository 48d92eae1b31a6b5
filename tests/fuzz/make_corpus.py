"""Writes the corpus anew: small valid files of every format and a few that are wrong on purpose.

    python tests/fuzz/make_corpus.py        (needs torch, safetensors, numpy)

Inputs that a fuzzer found are kept by hand under names that start with `found_`.
"""

import argparse
import glob
import io
import json
import os
import pickle
import shutil
import struct

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = os.path.join(HERE, "..", "golden")
CONFIGS = os.path.join(HERE, "..", "..", "configs")


def put(kind, name, data):
    folder = os.path.join(HERE, "corpus", kind)
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(dtype, shape, begin, end, **more):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def make_safetensors():
    put("safetensors", "empty", safetensors({}))
    put("safetensors", "two", safetensors(
        {"__metadata__": {"format": "pt"}, "a": tensor("F32", [2, 1], 0, 8), "b.c": tensor("F8_E4M3", [3], 8, 11)},
        bytes(11)))
    put("safetensors", "scalar_and_zero", safetensors(
        {"s": tensor("BF16", [], 0, 2), "z": tensor("I64", [0, 4], 2, 2)}, bytes(2)))
    put("safetensors", "packed", safetensors({"p": tensor("F4", [4], 0, 2), "u": tensor("BOOL", [1], 2, 3, x=[{}])},
                                             bytes(3)))
    put("safetensors", "spaces", safetensors(b'  {"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}   ', b"x"))
    put("safetensors", "overlap", safetensors({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [2], 1, 3)}, bytes(3)))
    put("safetensors", "overflow", safetensors({"a": tensor("U8", [2, 2**63 - 1], 0, 1)}, bytes(1)))
    put("safetensors", "twice", safetensors(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x"))
    put("safetensors", "long_header", struct.pack("<Q", 2**60) + b"{}")


def saved(value, **options):
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def make_zip():
    values = {"f32": torch.arange(3.0), "bf16": torch.zeros(2, 2, dtype=torch.bfloat16), "scalar": torch.tensor(7),
              "fp8": torch.zeros(4, dtype=torch.float8_e4m3fn), "empty": torch.zeros(0, 4),
              "parameter": torch.nn.Parameter(torch.ones(2)), "list": [torch.ones(1), 2]}
    for name, value in values.items():
        put("zip", name, saved(value))
    put("zip", "cut", saved(torch.ones(2))[:-30])


def make_pickle():
    tensor_file, metadata_file, common_file = b"\0", b"\1", b"\2"
    import zipfile
    for name, value in {"f32": torch.arange(3.0), "fp8": torch.zeros(4, dtype=torch.float8_e4m3fn)}.items():
        archive = zipfile.ZipFile(io.BytesIO(saved(value)))
        code = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        put("pickle", "tensor_" + name, tensor_file + archive.read(code))
    args = argparse.Namespace(tp=2, lr=1e-4, names=["a", "b"], nested={"x": (1, None, True)}, big=2**40, low=-3)
    for protocol in (2, 3, 4, 5):
        put("pickle", f"common_{protocol}", common_file + pickle.dumps({"args": args, "iteration": 7}, protocol))
    put("pickle", "sets", common_file + pickle.dumps({"s": {1, 2}, "b": b"xy", "l": [[], {}, ()]}, 4))
    put("pickle", "metadata", metadata_file + open(
        os.path.join(GOLDEN, "python_dcp", "checkpoint", ".metadata"), "rb").read())
    put("pickle", "hostile", common_file + b"cos\nsystem\n(X\x04\0\0\0trueR.")
    put("pickle", "hostile_stack", common_file + pickle.dumps(print, 4))
    put("pickle", "cycle", common_file + b"\x80\x04]\x94h\0a.")
    put("pickle", "deep", common_file + b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".")
    put("pickle", "memo_far", common_file + b"\x80\x02Nr\xff\xff\xff\x7f.")


def make_metadata():
    from torch.distributed.checkpoint.metadata import (BytesStorageMetadata, ChunkStorageMetadata, Metadata,
                                                        MetadataIndex, StorageMeta, TensorProperties,
                                                        TensorStorageMetadata)
    from torch.distributed.checkpoint.filesystem import _StorageInfo
    size = torch.Size
    chunks = [ChunkStorageMetadata(size([0, 0]), size([1, 3])), ChunkStorageMetadata(size([1, 0]), size([1, 3]))]
    entries = {"w": TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), size([2, 3]), chunks),
               "s": TensorStorageMetadata(TensorProperties(dtype=torch.float32), size([]),
                                          [ChunkStorageMetadata(size([]), size([]))]),
               "x": BytesStorageMetadata()}
    storage = {MetadataIndex("w", chunks[0].offsets, 0): _StorageInfo("__0_0.distcp", 0, 700),
               MetadataIndex("w", chunks[1].offsets, 1): _StorageInfo("__1_0.distcp", 0, 700),
               MetadataIndex("s", size([]), 0): _StorageInfo("__0_0.distcp", 700, 600),
               MetadataIndex("x"): _StorageInfo("__0_0.distcp", 1300, 50)}
    meta = Metadata(entries, {}, storage, StorageMeta(checkpoint_id="c", save_id="1"))
    for protocol in (2, 4):
        put("dcp_metadata", f"small_{protocol}", pickle.dumps(meta, protocol))
    storage[MetadataIndex("s", size([]), 0)] = _StorageInfo("../__0_0.distcp", 700, 600)
    put("dcp_metadata", "leaves", pickle.dumps(meta, 2))
    shutil.copy(os.path.join(GOLDEN, "python_dcp", "checkpoint", ".metadata"),
                os.path.join(HERE, "corpus", "dcp_metadata", "python_dcp"))


def make_configs():
    for path in glob.glob(os.path.join(GOLDEN, "*", "model", "config.json")) + [
            os.path.join(CONFIGS, "tiny", "model.json")]:
        name = os.path.basename(os.path.dirname(os.path.dirname(path)))
        put("model_config", name, json.dumps(json.load(open(path)), separators=(",", ":")))
    put("model_config", "scalar", "7")
    put("model_config", "deep", "[" * 400 + "]" * 400)


def make_tokenizers():
    vocab = {c: i for i, c in enumerate("0123456789+=abc")}
    vocab.update({"\u0120": 15, "\u010a": 16, "\u00c3": 17, "\u00a9": 18, "ab": 19, "10": 20})
    small = {
        "version": "1.0",
        "added_tokens": [{"id": 21, "content": "<|a|>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": False},
            {"type": "Split", "pattern": {"Regex": "\\s+|[a-z]+"}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": ["a b", ["1", "0"]]}}

    def write(name, **changes):
        put("tokenizer", name, json.dumps({**small, **changes}, ensure_ascii=False, separators=(",", ":")))

    write("small")
    write("string_split", pre_tokenizer={"type": "Split", "pattern": {"String": "+"}, "behavior": "Isolated",
                                         "invert": False})
    write("bad_regex", pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated"})
    write("slow_regex", pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"})
    write("huge_id", added_tokens=[{"id": 2**31 - 1, "content": "x"}])
    write("unigram", model={"type": "Unigram", "vocab": [["a", 0.0]]})


def make_indexes():
    put("shard_index", "good", '{"metadata":{"total_size":1},"weight_map":{"a":"m.safetensors"}}')
    put("shard_index", "bare", '{"metadata":{},"weight_map":{"a":"m.safetensors"}}')
    put("shard_index", "leaves", '{"weight_map":{"a":"../m.safetensors"}}')
    put("shard_index", "missing", '{"weight_map":{"a":"n.safetensors"}}')
    put("shard_index", "other", '{"weight_map":{"b":"m.safetensors"}}')
    put("shard_index", "twice", '{"weight_map":{"a":"m.safetensors","a":"n.safetensors"}}')


def make_hub():
    oid, sha = "b" * 40, "c" * 64
    page = [{"type": "directory", "oid": oid, "size": 0, "path": "d"},
            {"type": "file", "oid": oid, "size": 134, "path": "d/z", "xetHash": "h",
             "lfs": {"oid": sha, "size": 9000000000, "pointerSize": 134}},
            {"type": "file", "oid": oid, "size": 3, "path": "a"}]
    put("hub", "listing", b"\0" + json.dumps(page).encode())
    put("hub", "cache", b"\1" + json.dumps({"format_version": 1, "files": {
        "a": {"size": 3, "blob_id": oid}, "z": {"size": 1, "blob_id": oid, "lfs_sha256": sha, "lfs_size": 9}}}).encode())
    for number, path in enumerate(("a/b c.txt", "../a", "a\\..\\b", "C:/x", "/etc", "a[1]*?")):
        put("hub", f"path_{number}", b"\2" + path.encode())
    put("hub", "rate_limit", b'\3"api";r=0;t=55, "resolvers";r=3;t=7')
    put("hub", "link", b'\3<https://hub.example/x?cursor=1>; rel="next"')
    for number, url in enumerate(("/c", "https://cdn.example:8443/c?s=1", "http://h/", "//h/x", "file:///etc/passwd")):
        put("hub", f"redirect_{number}", b"\4" + url.encode())
    put("hub", "pattern", b"\5data/x7.json*/x[!0-6].json")


def main():
    for path in glob.glob(os.path.join(HERE, "corpus", "*", "*")):
        if not os.path.basename(path).startswith("found_"):
            os.remove(path)
    for make in (make_safetensors, make_zip, make_pickle, make_metadata, make_configs, make_tokenizers, make_indexes,
                 make_hub):
        make()


if __name__ == "__main__":
    main()
