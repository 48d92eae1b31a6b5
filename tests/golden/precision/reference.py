"""DeepSeek-V4 in fp64 with the roundings of each precision mode put in by hand.

An independent statement of docs/numerics.md: written from its tables, in PyTorch, with autograd for the
gradients (every rounding straight-through). Mode "fp32" rounds nothing and must agree with the golden
cases of transformers; make.py checks that before it writes anything.
"""
import json
import math

import torch
from safetensors import safe_open

MODES = ("fp32", "parity-bf16", "parity-fp8")


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rounded):
        return rounded

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def to_bf16(x):
    """Nearest of eight significant bits, ties to even."""
    fraction, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(torch.ldexp(fraction, torch.tensor(8))), exponent - 8)


E4M3 = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()  # 0 .. 448


def to_e4m3(x):
    """Nearest E4M3 value, ties to the even code, saturating."""
    upper = torch.searchsorted(E4M3, x.abs().clamp(max=448.0))
    lower = (upper - 1).clamp(min=0)
    below, above = E4M3[lower], E4M3[upper]
    up = (x.abs().clamp(max=448.0) - below) > (above - x.abs().clamp(max=448.0))
    tie = (x.abs().clamp(max=448.0) - below) == (above - x.abs().clamp(max=448.0))
    take = up | (tie & (upper % 2 == 0))
    return torch.copysign(torch.where(take, above, below), x)


def power_scale(amax):
    """2^ceil(log2(fp32(amax * fp32(1/448))))."""
    ratio = amax.float() * torch.tensor(1.0 / 448.0, dtype=torch.float32)
    fraction, exponent = torch.frexp(ratio)
    return torch.ldexp(torch.ones_like(amax), torch.where(fraction == 0.5, exponent - 1, exponent))


def fp8_rows(x, block):
    """The last axis in blocks through E4M3 and back."""
    out = torch.empty_like(x)
    for begin in range(0, x.shape[-1], block):
        part = x[..., begin:begin + block]
        scale = power_scale(part.abs().amax(-1, keepdim=True).clamp(min=1e-4))
        out[..., begin:begin + block] = to_e4m3(part / scale) * scale
    return out


def fp8_weight(w):
    out = torch.empty_like(w)
    for r in range(0, w.shape[0], 128):
        for c in range(0, w.shape[1], 128):
            part = w[r:r + 128, c:c + 128]
            scale = power_scale(part.abs().amax().clamp(min=1e-10))
            out[r:r + 128, c:c + 128] = to_e4m3(part / scale) * scale
    return out


def hadamard(n):
    h = torch.ones(1, 1, dtype=torch.float64)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h / math.sqrt(n)


class AttentionCore(torch.autograd.Function):
    """P is rounded where it weighs the keys, against its chunk's maximum; o is rounded. The backward
    goes through both: its P is not rounded, its sum over do * o takes the rounded o."""

    @staticmethod
    def forward(ctx, q, keys, sink, num_window, scale, rounds):
        s = torch.einsum("hd,kd->hk", q, keys) * scale
        m = torch.maximum(s.amax(1), sink)
        p = torch.exp(s - m[:, None])
        denominator = p.sum(1) + torch.exp(sink - m)
        weights = p
        if rounds:
            parts, begin, end = [], 0, num_window
            while begin < s.shape[1]:
                chunk = s[:, begin:end]
                top = chunk.amax(1, keepdim=True)
                parts.append(to_bf16(torch.exp(chunk - top)) * torch.exp(top - m[:, None]))
                begin, end = end, end + 512
            weights = torch.cat(parts, 1)
        o = torch.einsum("hk,kd->hd", weights, keys) / denominator[:, None]
        o = to_bf16(o) if rounds else o
        ctx.save_for_backward(q, keys, sink, p / denominator[:, None], torch.exp(sink - m) / denominator, o)
        ctx.scale = scale
        return o

    @staticmethod
    def backward(ctx, do):
        q, keys, sink, p, p_sink, o = ctx.saved_tensors
        delta = (o * do).sum(1)
        ds = p * (torch.einsum("hd,kd->hk", do, keys) - delta[:, None]) * ctx.scale
        dq = torch.einsum("hk,kd->hd", ds, keys)
        dkeys = torch.einsum("hk,hd->kd", ds, q) + torch.einsum("hk,hd->kd", p, do)
        return dq, dkeys, -delta * p_sink, None, None, None


class Model:
    def __init__(self, directory, mode):
        self.config = json.load(open(f"{directory}/config.json"))
        self.mode = mode
        self.weights = {}
        with safe_open(f"{directory}/model.safetensors", "pt") as f:
            for name in f.keys():
                w = f.get_tensor(name)
                is_float = w.dtype.is_floating_point
                self.weights[name] = w.double().requires_grad_() if is_float else w.long()
        self.rounded = {}

    # ---- Roundings ------------------------------------------------------------------------------
    def act(self, x):
        return x if self.mode == "fp32" else StraightThrough.apply(x, to_bf16(x.detach()))

    def latent(self, x):
        if self.mode != "parity-fp8":
            return x
        n = x.shape[-1] - self.config["qk_rope_head_dim"]
        rounded = x.detach().clone()
        rounded[..., :n] = fp8_rows(rounded[..., :n], 64)
        return StraightThrough.apply(x, rounded)

    def indexer(self, x):
        if self.mode != "parity-fp8":
            return x
        return fp8_rows(to_bf16(x.detach() @ hadamard(x.shape[-1])), 128)

    def is_fp8(self, name):
        ends = ("wq_a.weight", "wq_b.weight", ".wkv.weight", "wo_b.weight")
        return (self.mode == "parity-fp8" and "compressor" not in name and
                (name.endswith(ends) or ".experts." in name or ".shared_experts." in name))

    def w(self, name):
        """A weight as the products read it. F32 in files: kept; else BF16 or FP8 blocks."""
        if name not in self.rounded:
            master = self.weights[name]
            kept = any(part in name for part in ("attn_sink", ".ape", "hc_", "gate.bias"))
            if self.mode == "fp32" or kept:
                self.rounded[name] = master
            else:
                value = fp8_weight(master.detach()) if self.is_fp8(name) else to_bf16(master.detach())
                self.rounded[name] = StraightThrough.apply(master, value)
        return self.rounded[name]

    def linear(self, x, name):
        """x W^T, not rounded."""
        if self.is_fp8(name):
            x = StraightThrough.apply(x, fp8_rows(x.detach(), 128))
        return x @ self.w(name).T

    # ---- Parts ----------------------------------------------------------------------------------
    def norm(self, x, name):
        rho = torch.rsqrt((x * x).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        y = x * rho
        return self.act(y if name is None else y * self.w(name))

    def frequencies(self, compressed):
        c, n = self.config, self.config["qk_rope_head_dim"]
        base = c["compress_rope_theta"] if compressed else c["rope_theta"]
        out = []
        scaling = c.get("rope_scaling")
        for i in range(n // 2):
            f = base ** (-2 * i / n)
            if compressed and scaling and scaling["factor"] != 1:
                def dim(turns):
                    original = scaling["original_max_position_embeddings"]
                    return n * math.log(original / (2 * math.pi * turns)) / (2 * math.log(base))
                low = max(math.floor(dim(scaling["beta_fast"])), 0)
                high = min(math.ceil(dim(scaling["beta_slow"])), n - 1)
                high = high + 0.001 if low == high else high
                ramp = min(max((i - low) / (high - low), 0), 1)
                f = f / scaling["factor"] * ramp + f * (1 - ramp)
            out.append(f)
        return torch.tensor(out, dtype=torch.float32)

    def rope(self, x, positions, compressed, inverse=False):
        """The last channels of x [rows, heads, width], pairs side by side."""
        angle = (torch.tensor(positions, dtype=torch.float32)[:, None] *
                 self.frequencies(compressed)[None]).double()
        cos = torch.cos(angle).float().double()[:, None]
        sin = torch.sin(angle).float().double()[:, None] * (-1 if inverse else 1)
        n = self.config["qk_rope_head_dim"]
        keep, pairs = x[..., :-n], x[..., -n:].unflatten(-1, (-1, 2))
        a, b = pairs[..., 0], pairs[..., 1]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)
        return self.act(torch.cat([keep, turned], -1))

    def compress(self, x, prefix, ratio, width):
        T = x.shape[0]
        v = self.linear(x, prefix + ".wkv.weight")
        ape = self.w(prefix + ".ape")
        g = self.linear(x, prefix + ".wgate.weight") + ape[torch.arange(T) % ratio]
        rows = []
        for e in range(T // ratio):
            own = slice(ratio * e, ratio * (e + 1))
            values, gates = v[own, -width:], g[own, -width:]
            if ratio == 4 and e > 0:
                before = slice(ratio * (e - 1), ratio * e)
                values = torch.cat([v[before, :width], values])
                gates = torch.cat([g[before, :width], gates])
            rows.append((torch.softmax(gates, 0) * values).sum(0))
        pooled = self.act(torch.stack(rows) if rows else v.new_zeros(0, width))
        normed = self.norm(pooled, prefix + ".norm.weight")
        return self.rope(normed[:, None], [ratio * e for e in range(T // ratio)], True)[:, 0]

    def attention(self, x, prefix, ratio):
        c, T = self.config, x.shape[0]
        H, hd, W = c["num_attention_heads"], c["head_dim"], c["sliding_window"]
        positions = list(range(T))
        qr = self.norm(self.act(self.linear(x, prefix + ".wq_a.weight")), prefix + ".q_norm.weight")
        q = self.act(self.linear(qr, prefix + ".wq_b.weight")).unflatten(-1, (H, hd))
        q = self.rope(self.norm(q, None), positions, ratio > 0)
        kv = self.norm(self.act(self.linear(x, prefix + ".wkv.weight")), prefix + ".kv_norm.weight")
        kv = self.latent(self.rope(kv[:, None], positions, ratio > 0)[:, 0])
        entries = None
        if ratio > 0:
            entries = self.latent(self.compress(x, prefix + ".compressor", ratio, hd))
        if ratio == 4:
            with torch.no_grad():
                picks = self.pick(x, qr, prefix + ".indexer")
        o = []
        for t in positions:
            first = max(0, t - W + 1)
            keys = [kv[first:t + 1]]
            if ratio > 0:
                keys.append(entries[picks[t] if ratio == 4 else list(range((t + 1) // ratio))])
            o.append(AttentionCore.apply(q[t], torch.cat(keys), self.w(prefix + ".attn_sink"),
                                         t + 1 - first, 1 / math.sqrt(hd), self.mode != "fp32"))
        o = self.rope(torch.stack(o), positions, ratio > 0, inverse=True)
        G = c["o_groups"]
        wo_a = self.w(prefix + ".wo_a.weight").unflatten(0, (G, -1))
        z = self.act(torch.einsum("tgd,grd->tgr", o.flatten(1).unflatten(1, (G, -1)), wo_a))
        return self.act(self.linear(z.flatten(1), prefix + ".wo_b.weight"))

    def pick(self, x, qr, prefix):
        c, T = self.config, x.shape[0]
        Hi, di = c["index_n_heads"], c["index_head_dim"]
        keys = self.indexer(self.compress(x, prefix + ".compressor", 4, di))
        q = self.act(self.linear(qr, prefix + ".wq_b.weight")).unflatten(-1, (Hi, di))
        q = self.indexer(self.rope(q, list(range(T)), True))
        a = self.linear(x, prefix + ".weights_proj.weight") / math.sqrt(di) / math.sqrt(Hi)
        scores = (torch.relu(torch.einsum("thd,wd->thw", q, keys)) * a[..., None]).sum(1)
        picks = []
        for t in range(T):
            order = sorted(range((t + 1) // 4), key=lambda w: (-float(scores[t, w]) + 0.0, w))
            picks.append(sorted(order[:c["index_topk"]]))
        return picks

    def expert(self, x, prefix, limit):
        g = self.act(self.linear(x, prefix + ".w1.weight"))
        u = self.act(self.linear(x, prefix + ".w3.weight"))
        if limit > 0:
            g, u = g.clamp(max=limit), u.clamp(-limit, limit)
        return self.act(self.linear(self.act(torch.nn.functional.silu(g) * u), prefix + ".w2.weight"))

    def moe(self, x, prefix, ids):
        c = self.config
        scores = torch.sqrt(torch.nn.functional.softplus(self.linear(x, prefix + ".gate.weight")))
        if prefix + ".gate.tid2eid" in self.weights:
            chosen = self.weights[prefix + ".gate.tid2eid"][ids]
        else:
            biased = (scores + self.w(prefix + ".gate.bias")).detach()
            order = torch.sort(-biased, stable=True, dim=1).indices
            chosen = order[:, :c["num_experts_per_tok"]]
        weights = torch.gather(scores, 1, chosen)
        weights = weights / (weights.sum(1, keepdim=True) + 1e-20) * c["routed_scaling_factor"]
        limit = c.get("swiglu_limit") or 0.0
        out = [x.new_zeros(x.shape[1]) for _ in range(x.shape[0])]
        for e in chosen.unique().tolist():
            tokens, slots = torch.nonzero(chosen == e, as_tuple=True)
            rows = self.expert(x[tokens], f"{prefix}.experts.{e}", limit)
            for i, (t, j) in enumerate(zip(tokens.tolist(), slots.tolist())):
                out[t] = out[t] + weights[t, j] * rows[i]
        return self.act(torch.stack(out) + self.expert(x, prefix + ".shared_experts", limit))

    # ---- Hyper-connections ----------------------------------------------------------------------
    def mix(self, x, prefix, rows):
        u = x.flatten(1)
        rho = torch.rsqrt((u * u).mean(1, keepdim=True) + self.config["rms_norm_eps"])
        return rho * (u @ self.w(prefix + "_fn").T)[:, :rows]

    def sublayer(self, x, prefix, f, norm):
        c, M, eps = self.config, self.config["hc_mult"], self.config["hc_eps"]
        m = self.mix(x, prefix, (2 + M) * M)
        scale, base = self.w(prefix + "_scale"), self.w(prefix + "_base")
        pre = torch.sigmoid(m[:, :M] * scale[0] + base[:M]) + eps
        post = 2 * torch.sigmoid(m[:, M:2 * M] * scale[1] + base[M:2 * M])
        comb = torch.softmax((m[:, 2 * M:] * scale[2] + base[2 * M:]).unflatten(1, (M, M)), -1) + eps
        comb = comb / (comb.sum(1, keepdim=True) + eps)
        for _ in range(c["hc_sinkhorn_iters"] - 1):
            comb = comb / (comb.sum(2, keepdim=True) + eps)
            comb = comb / (comb.sum(1, keepdim=True) + eps)
        y = self.act((pre[..., None] * x).sum(1))
        out = f(self.norm(y, norm))
        return self.act(post[..., None] * out[:, None] + torch.einsum("tjk,tjd->tkd", comb, x))

    def head_hidden(self, x, prefix, norm):
        M = self.config["hc_mult"]
        m = self.mix(x, prefix, M)
        w = torch.sigmoid(m * self.w(prefix + "_scale")[0] + self.w(prefix + "_base"))
        h = self.act(((w + self.config["hc_eps"])[..., None] * x).sum(1))
        return self.norm(h, norm)

    def block(self, x, prefix, ratio, ids):
        x = self.sublayer(x, prefix + ".hc_attn",
                          lambda y: self.attention(y, prefix + ".attn", ratio),
                          prefix + ".attn_norm.weight")
        return self.sublayer(x, prefix + ".hc_ffn", lambda y: self.moe(y, prefix + ".ffn", ids),
                             prefix + ".ffn_norm.weight")

    # ---- Whole ----------------------------------------------------------------------------------
    def streams(self, ids):
        x = self.w("embed.weight")[ids][:, None].repeat(1, self.config["hc_mult"], 1)
        for layer in range(self.config["num_hidden_layers"]):
            x = self.block(x, f"layers.{layer}", self.config["compress_ratios"][layer], ids)
        return x

    def logits(self, x, prefix="hc_head", norm="norm.weight"):
        return self.head_hidden(x, prefix, norm) @ self.w("head.weight").T

    def mtp_input(self, x, next_ids):
        e = self.norm(self.w("embed.weight")[next_ids], "mtp.0.enorm.weight")
        h = self.norm(x, "mtp.0.hnorm.weight")
        return self.act(self.act(self.linear(h, "mtp.0.h_proj.weight")) +
                     self.act(self.linear(e, "mtp.0.e_proj.weight"))[:, None])

    def mtp_logits(self, ids):
        """Row t: from the streams at t and token t+1."""
        next_ids = ids[1:]
        x = self.mtp_input(self.streams(ids)[:-1], next_ids)
        x = self.block(x, "mtp.0", 0, next_ids)
        return self.logits(x, "mtp.0.hc_head", "mtp.0.norm.weight")

    def log_probs(self, ids, logits):
        return torch.log_softmax(logits[:-1], -1).gather(1, ids[1:, None])[:, 0]
