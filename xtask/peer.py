"""The PyTorch peer of `gpas bench`: the same model, trained as PyTorch users train it, timed the same way.

    python peer.py --preset 20m --scheme pre_gpas --batch 8 --seq 256 [--compile] [--dtype float32|mixed|bfloat16] [--device cuda]

Prints one JSON object with the keys of `gpas bench --json`. A step is forward, loss, backward, global clipping and fused Adam, on random
tokens; the loss is read at the end of it, as a trainer would, and the logits are made once and never copied. On a card, float32 products are
in TF32, as they are in `gpas`, and the peak of memory is what the allocator took from the card.
"""
import argparse
import json
import os
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

#          hidden, intermediate, heads, layers
SIZES = {
    "9m": (128, 352, 4, 4),
    "20m": (256, 688, 4, 4),
    "35m": (384, 1024, 8, 6),
    "40m": (416, 1024, 8, 8),
    "60m": (512, 1376, 8, 8),
    "71m": (512, 1368, 8, 12),
    "100m": (640, 1708, 10, 12),
    "130m": (768, 2048, 12, 12),
    "250m": (768, 2560, 16, 24),
    "350m": (1024, 2736, 16, 24),
    "1b": (2048, 5461, 32, 24),
}
# Which norms a sub-layer has: before it, on what it returns, on the sum.
NORMS = {"pre": (True, False, False), "sandwich": (True, True, False), "post": (False, False, True)}


class Norm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(self.weight.dtype)


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (linear(width, width) for _ in range(4))

    def forward(self, x, turn):
        batch, seq, width = x.shape
        q, k, v = (
            project(x).view(batch, seq, self.heads, -1).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(rotate(q, *turn), rotate(k, *turn), v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, seq, width))


def rotate(x, cos, sin):
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class Mlp(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.gate, self.up, self.down = linear(width, inner), linear(width, inner), linear(inner, width)

    def forward(self, x, _turn):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SubLayer(nn.Module):
    """One sub-layer on the residual stream; the gate is its layer's."""

    def __init__(self, inner, width, norms):
        super().__init__()
        self.inner = inner
        self.before, self.branch, self.total = (Norm(width) if has else nn.Identity() for has in norms)

    def forward(self, x, turn, gate, gates_stream):
        branch = self.branch(self.inner(self.before(x), turn))
        if gate is not None and not gates_stream:
            x = x - F.silu(gate) * x.detach()
        x = self.total(x + branch)
        if gate is not None and gates_stream:
            x = x - F.silu(gate) * x.detach()
        return x


class Model(nn.Module):
    def __init__(self, vocab, size, scheme, seq):
        super().__init__()
        width, inner, heads, layers = size
        base, _, gated = scheme.partition("_")
        self.gates_stream = base != "post"
        self.embedding = nn.Embedding(vocab, width)
        nn.init.normal_(self.embedding.weight, std=0.4**0.5)
        self.layers = nn.ModuleList(
            nn.ModuleList(SubLayer(part, width, NORMS[base]) for part in (Attention(width, heads), Mlp(width, inner)))
            for _ in range(layers)
        )
        self.gates = nn.ParameterList(torch.zeros(()) for _ in range(layers)) if gated else None
        self.norm, self.head = Norm(width), linear(width, vocab)
        half = width // heads // 2
        angles = torch.outer(torch.arange(seq).float(), 10000 ** (-torch.arange(half).float() / half)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        turn = self.cos.to(x.dtype), self.sin.to(x.dtype)
        for index, layer in enumerate(self.layers):
            for sub_layer in layer:
                x = sub_layer(x, turn, self.gates[index] if self.gates else None, self.gates_stream)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1).float(), targets.flatten())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="20m", choices=SIZES)
    parser.add_argument("--scheme", default="pre_gpas", choices=[name + gated for name in NORMS for gated in ("", "_gpas")])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--dtype", "--precision", default="float32", choices=["float32", "mixed", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count())
    torch.set_float32_matmul_precision("high")
    on_gpu = args.device.startswith("cuda")
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    model = Model(args.vocab, SIZES[args.preset], args.scheme, args.seq)
    model = model.to(args.device, torch.bfloat16 if args.dtype == "bfloat16" else torch.float32)
    run = torch.compile(model) if args.compile else model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    times = []
    for _ in range(args.warmup + args.steps):
        ids = torch.randint(args.vocab, (args.batch, args.seq + 1), device=args.device)
        wait()
        begin = time.perf_counter()
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.dtype == "mixed"):
            loss = run(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        wait()
        times.append(time.perf_counter() - begin)
    step = statistics.median(times[args.warmup :])
    peak = torch.cuda.max_memory_reserved() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "peer": "torch.compile" if args.compile else "torch",
                "preset": args.preset,
                "scheme": args.scheme,
                "batch": args.batch,
                "seq": args.seq,
                "vocab": args.vocab,
                "dtype": args.dtype,
                "tokens_per_s": round(args.batch * args.seq / step, 1),
                "step_s": round(step, 4),
                "peak_bytes": peak,
            }
        )
    )


if __name__ == "__main__":
    main()
