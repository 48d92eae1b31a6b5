"""Writes {small,release_shapes}.safetensors: what reference.py computes for the golden models.

    python tests/golden/precision/make.py        (torch, safetensors; takes seconds)

For S pieces of n tokens of the golden sequence 1, each a sequence of its own, and per mode:
  ids                       i32 [S, n]
  dout                      bf16 [S * n, M, D] a gradient of a layer's output, the same for every layer
  <mode>.streams.<l>        bf16 [S * n, M, D] what enters layer l; l = L: what leaves the last one
  <mode>.mtp_in, .mtp_out   bf16 [S * (n-1), M, D] around the MTP block, row t with token t+1 ("small")
  <mode>.din.<l>            bf16 [S * n, M, D] the gradient of layer l's input
  <mode>.grad.<tensor>      bf16, every 7th or 37th element (row-major) of the layer's gradient of a weight
  <mode>.logits             f32 [16, V] of the first 16 rows of the first piece through the whole model
Layers are independent: each gets the reference's own input, so a rounding that falls to the other
side of a tie in one layer does not reach the next.
"""
import os

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from reference import MODES, Model

HERE = os.path.dirname(os.path.abspath(__file__))
# (first token, tokens): past windows (16, 128) and ratios (4, 16, 128)
PIECES = {"small": [(0, 40), (20, 40), (56, 40)], "release_shapes": [(0, 140)]}
STRIDE = {"small": 7, "release_shapes": 37}


def check_fp32(directory, case):
    """Without roundings the model is transformers' one."""
    m = Model(directory, "fp32")
    for i in (0, 1):
        ids = case.get_tensor(f"ids.{i}").long()
        logits = m.logits(m.streams(ids))
        error = (logits - case.get_tensor(f"logits.{i}")).abs().max()
        assert error < 1e-4, error
        if f"mtp_logits.{i}" in case.keys():
            assert (m.mtp_logits(ids) - case.get_tensor(f"mtp_logits.{i}")).abs().max() < 1e-4
    (-m.log_probs(ids, logits).mean()).backward()
    for name in case.keys():
        if name.startswith("grad."):
            want, got = case.get_tensor(name).double(), m.weights[name[5:]].grad
            error = (want if got is None else want - got).norm()
            assert error <= 1e-4 * want.norm() + 1e-9, (name, error)


def layer_case(model, mode, layer, pieces, x, dout, stride, out):
    """One layer alone: output, gradient of the input, gradients of its weights."""
    for w in model.weights.values():
        w.grad = None
    x = x.detach().requires_grad_()
    ys, row = [], 0
    for ids in pieces:
        model.rounded = {}
        rows = slice(row, row + len(ids))
        y = model.block(x[rows], f"layers.{layer}", model.config["compress_ratios"][layer], ids)
        y.backward(dout[rows])
        ys.append(y.detach())
        row += len(ids)
    out[f"{mode}.din.{layer}"] = x.grad.bfloat16()
    for name, w in model.weights.items():
        if name.startswith(f"layers.{layer}.") and w.is_floating_point() and w.grad is not None:
            if w.grad.abs().max() > 0:
                out[f"{mode}.grad.{name}"] = w.grad.flatten()[::stride].bfloat16()
    return torch.cat(ys)


def mtp_case(model, mode, pieces, x, out):
    inputs, outputs, row = [], [], 0
    for ids in pieces:
        inputs.append(model.mtp_input(x[row:row + len(ids) - 1], ids[1:]))
        outputs.append(model.block(inputs[-1], "mtp.0", 0, ids[1:]))
        row += len(ids)
    out[f"{mode}.mtp_in"] = torch.cat(inputs).bfloat16()
    out[f"{mode}.mtp_out"] = torch.cat(outputs).bfloat16()


def main():
    torch.set_num_threads(1)
    for name, cuts in PIECES.items():
        directory = os.path.join(HERE, "..", name)
        case = safe_open(os.path.join(directory, "case.safetensors"), "pt")
        check_fp32(os.path.join(directory, "model"), case)
        ids = case.get_tensor("ids.1").long()
        pieces = [ids[first:first + n] for first, n in cuts]
        out = {"ids": torch.stack(pieces).int()}
        for mode in MODES[1:]:
            model = Model(os.path.join(directory, "model"), mode)
            num_layers, M = model.config["num_hidden_layers"], model.config["hc_mult"]
            x = model.w("embed.weight")[torch.cat(pieces)][:, None].repeat(1, M, 1).detach()
            dout = torch.randn(x.shape, generator=torch.Generator().manual_seed(7)).bfloat16()
            out["dout"] = dout
            for layer in range(num_layers):
                out[f"{mode}.streams.{layer}"] = x.bfloat16()
                x = layer_case(model, mode, layer, pieces, x, dout.double(), STRIDE[name], out)
            out[f"{mode}.streams.{num_layers}"] = x.bfloat16()
            model.rounded = {}
            with torch.no_grad():
                if "mtp.0.norm.weight" in model.weights:
                    mtp_case(model, mode, pieces, x, out)
                out[f"{mode}.logits"] = model.logits(model.streams(pieces[0][:16])).float()
        path = os.path.join(HERE, f"{name}.safetensors")
        save_file(out, path)
        os.chmod(path, 0o644)
        print(path, os.path.getsize(path), "bytes")


if __name__ == "__main__":
    main()
