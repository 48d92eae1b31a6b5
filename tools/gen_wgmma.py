#!/usr/bin/env python3
"""Writes src/fathom/kernels/sm90/wgmma.h: one inline function per wgmma shape that the kernels use.

Usage: tools/gen_wgmma.py > src/fathom/kernels/sm90/wgmma.h
"""

HEAD = """// Warpgroup matrix products (wgmma), one function a shape. Written by tools/gen_wgmma.py.
//   wgmma_<type>_ss<N, tA, tB>(d, descA, descB, accumulate): both operands in shared memory
//   wgmma_<type>_rs<N, tB>(d, a, descB, accumulate): A in registers
// d is this thread's part of the 64 x N fp32 result: d[4 i + 0, 1] are row lane / 4 and columns
// 8 i + 2 (lane % 4) + {0, 1}; d[4 i + 2, 3] the same columns of row lane / 4 + 8; warp w of the
// group adds 16 w rows. tA, tB = 1: that operand lies with its M (or N) index contiguous.
#pragma once

#include <cstdint>

namespace fathom::sm90 {

"""


def emit(n, kind, mode):
    regs = n // 2
    k = {"bf16": 16, "e4m3": 32}[kind]
    dlist = ", ".join(f"%{i}" for i in range(regs))
    outs = ", ".join(f'"+f"(d[{i}])' for i in range(regs))
    base = regs
    fn = f"wgmma_{kind}_{mode}"
    if kind == "bf16":
        tmpl = "template <int tA, int tB>" if mode == "ss" else "template <int tB>"
    else:
        tmpl = ""
    if mode == "ss":
        args = "uint64_t a, uint64_t b"
        ins = '"l"(a), "l"(b)'
        ops = f"%{base}, %{base + 1}"
        nxt = base + 2
    else:
        args = "const uint32_t (&a)[4], uint64_t b"
        ins = '"r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b)'
        ops = "{" + ", ".join(f"%{base + i}" for i in range(4)) + "}, " + f"%{base + 4}"
        nxt = base + 5
    ins += ', "r"(accumulate)'
    imm = ", p, 1, 1"
    if kind == "bf16":
        if mode == "ss":
            ins += ', "n"(tA), "n"(tB)'
            imm += f", %{nxt + 1}, %{nxt + 2}"
        else:
            ins += ', "n"(tB)'
            imm += f", %{nxt + 1}"
    ptype = {"bf16": "bf16.bf16", "e4m3": "e4m3.e4m3"}[kind]
    if tmpl:
        print(tmpl)
    print(f"__device__ __forceinline__ void {fn}(float (&d)[{regs}], {args}, int accumulate) {{")
    print('  asm volatile(')
    print('      "{\\n.reg .pred p;\\n"')
    print(f'      "setp.ne.b32 p, %{nxt}, 0;\\n"')
    print(f'      "wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{ptype} "')
    # break the register list over lines
    items = [f"%{i}" for i in range(regs)]
    lines = [", ".join(items[i:i + 16]) for i in range(0, regs, 16)]
    for i, line in enumerate(lines):
        pre = "{" if i == 0 else ""
        post = "}, " if i == len(lines) - 1 else ", "
        print(f'      "{pre}{line}{post}"')
    print(f'      "{ops}{imm};\\n}}\\n"')
    outs_items = [f'"+f"(d[{i}])' for i in range(regs)]
    lines = [", ".join(outs_items[i:i + 6]) for i in range(0, regs, 6)]
    print("      : " + ",\n        ".join(lines))
    print(f"      : {ins});")
    print("}\n")


print(HEAD, end="")
print("// clang-format off")
for n in (32, 64, 128, 256):
    emit(n, "bf16", "ss")
for n in (64, 128):
    emit(n, "bf16", "rs")
for n in (32, 128):
    emit(n, "e4m3", "ss")
print("// clang-format on")
print("\n}  // namespace fathom::sm90")
