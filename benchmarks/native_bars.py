"""The native CPU backend against nn.Conv2d, the official pipeline, nn.Linear and eager noise: every row of its bars.

    python benchmarks/native_bars.py                      everything
    python benchmarks/native_bars.py --only conv --reps 5

All variants of a shape run in turn, round after round, so that a machine that slows down slows all of them; a time is
the median of its rounds. No ratio is reported unless the result was right in the same run: each variant is compared
with the vendor's convolution (or matmul) of a materialised SW first. Averages over a table's rows weigh by probability.

The official pipeline is written from its description (arXiv 2405.19590): torchvision's RandomAffine on the weight, an
affine grid sampled with nearest and filled outside, times a learnable scale, then F.conv2d.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from watnn import transforms as T

from wat_kernels import Noise, TapTable, philox, shadow_conv2d, shadow_linear

CONV_SHAPES = [(64, 32), (128, 16), (256, 8), (512, 4), (512, 2)]  # channels, image size
DEPTHWISE_SHAPES = [(192, 32, 3), (576, 16, 3), (672, 14, 5)]  # channels, image size, kernel size
BATCHES = [128, 16]
LINEAR_SHAPES = [(1024, 1024), (4096, 4096)]  # in, out
LINEAR_ROWS = [16, 128, 1024]
TOLERANCE = 1e-4  # of the largest absolute value


def forward_backward(function: Callable[[], Tensor], leaves: list[Tensor], dy: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(), leaves, dy)


def interleaved(functions: dict[str, Callable[[], object]], reps: int) -> dict[str, float]:
    """Median seconds of each, all of them once a round."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(reps):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def check(name: str, got: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
    for index, (a, b) in enumerate(zip(got, right, strict=True)):
        error = float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        if not error <= TOLERANCE:
            sys.exit(f"{name}: result {index} is wrong by {error:.2g} of its largest value; nothing is reported")


def rows_of(table: TapTable) -> list[tuple[TapTable, float]]:
    """One table for each row, with its probability."""
    return [(TapTable(table.maps[row : row + 1], [1.0], table.kernel_size), float(p))
            for row, p in enumerate(table.probabilities)]  # fmt: skip


def official_conv2d(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, padding: int, groups: int) -> Tensor:
    size = weight.shape[-1]
    shift = [2 * round(random.uniform(-0.3, 0.3) * size) / size for _ in range(2)]
    theta = torch.tensor([[[1.0, 0.0, shift[0]], [0.0, 1.0, shift[1]]]])
    grid = F.affine_grid(theta, [1, 1, size, size], align_corners=False).expand(len(weight), -1, -1, -1)
    # torchvision fills with zeros by default, and finds the places to fill by sampling a channel of ones as well
    sampled = torch.cat((weight, weight.new_ones(len(weight), 1, size, size)), dim=1)
    sampled = F.grid_sample(sampled, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    moved, outside = sampled[:, :-1], sampled[:, -1:].expand_as(weight) < 0.5
    moved[outside] = weight.new_zeros(1, weight.shape[1], 1, 1).expand_as(weight)[outside]
    return F.conv2d(x, moved * scale, bias, padding=padding, groups=groups)


def conv_case(channels: int, image: int, kernel: int, batch: int, groups: int):
    x = torch.randn(batch, channels, image, image).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(channels, channels // groups, kernel, kernel).mul_(0.05).requires_grad_()
    bias = torch.randn(channels).requires_grad_()
    dy = torch.randn(batch, channels, image, image).contiguous(memory_format=torch.channels_last)
    return x, weight, bias, dy


def bench_conv(channels: int, image: int, kernel: int, batch: int, depthwise: bool, args) -> list[dict]:
    groups, padding = (channels if depthwise else 1), kernel // 2
    x, weight, bias, dy = conv_case(channels, image, kernel, batch, groups)
    leaves = [x, weight, bias]
    keywords = {"padding": padding, "groups": groups, "key": 1, "backend": "native"}
    tables = {"translate": T.RandomAffine(0, translate=(0.3, 0.3)).tap_table((kernel, kernel))}
    if not depthwise:
        tables["identity"] = TapTable.identity((kernel, kernel))
        tables["resized_crop"] = T.RandomResizedCrop(scale=(0.8, 1.0)).tap_table((kernel, kernel))
    runs = {
        "nn.Conv2d": forward_backward(lambda: F.conv2d(x, weight, bias, padding=padding, groups=groups), leaves, dy)
    }
    weights: dict[str, list[tuple[str, float]]] = {}
    for name, table in tables.items():
        weights[name] = []
        for row, (single, probability) in enumerate(rows_of(table)):
            run = forward_backward(lambda t=single: shadow_conv2d(x, weight, bias, table=t, **keywords), leaves, dy)
            shadow = torch.einsum("tp,oip->oit", single.maps[0], weight.flatten(2)).view_as(weight)
            right = F.conv2d(x, shadow, bias, padding=padding, groups=groups)
            check(f"{name} row {row}", run(), torch.autograd.grad(right, leaves, dy))
            runs[f"{name} {row}"] = run
            weights[name].append((f"{name} {row}", probability))
    if not depthwise:
        scale = torch.ones(()).requires_grad_()
        runs["official"] = forward_backward(
            lambda: official_conv2d(x, weight, bias, scale, padding, groups), [*leaves, scale], dy
        )
    seconds = interleaved(runs, args.reps)
    for name, rows in weights.items():
        seconds[name] = sum(probability * seconds[key] for key, probability in rows)
    label = f"{channels}ch {image}x{image} k{kernel} batch {batch}"
    op = "depthwise" if depthwise else "conv"
    pairs = [(name, "nn.Conv2d") for name in tables] + ([] if depthwise else [("translate", "official")])
    return [row_of(op, label, ours, theirs, seconds) for ours, theirs in pairs]


def bench_linear(size: tuple[int, int], rows: int, args) -> list[dict]:
    inputs, outputs = size
    x = torch.randn(rows, inputs).requires_grad_()
    weight, bias = torch.randn(outputs, inputs).mul_(0.03).requires_grad_(), torch.randn(outputs).requires_grad_()
    dy, leaves = torch.randn(rows, outputs), [x, weight, bias]
    key = torch.tensor(1)
    runs = {"nn.Linear": forward_backward(lambda: F.linear(x, weight, bias), leaves, dy)}
    factors = {
        "dropconnect": lambda: philox.keep_mask(key, 1, weight.numel(), 0.3).view_as(weight) / 0.7,
        "multiplicative": lambda: 1 + 0.1 * philox.standard_normal(key, 1, weight.numel()).view_as(weight),
    }
    for name, amount in (("dropconnect", 0.3), ("multiplicative", 0.1)):
        noise = Noise(name, amount)
        run = forward_backward(
            lambda n=noise: shadow_linear(x, weight, bias, key=1, noise=n, backend="native"), leaves, dy
        )
        right = F.linear(x, weight * factors[name](), bias)
        check(name, run(), torch.autograd.grad(right, leaves, dy))
        runs[name] = run
    runs["eager dropconnect"] = forward_backward(lambda: F.linear(x, F.dropout(weight, 0.3), bias), leaves, dy)
    runs["eager multiplicative"] = forward_backward(
        lambda: F.linear(x, weight * (1 + 0.1 * torch.randn_like(weight)), bias), leaves, dy)  # fmt: skip
    seconds = interleaved(runs, args.reps)
    label = f"{inputs}->{outputs} rows {rows}"
    return [row_of("linear", label, name, theirs, seconds)
            for name in factors for theirs in ("nn.Linear", f"eager {name}")]  # fmt: skip


def row_of(op: str, shape: str, ours: str, theirs: str, seconds: dict[str, float]) -> dict:
    row = {"op": op, "shape": shape, "variant": ours, "against": theirs, "ms": round(seconds[ours] * 1e3, 4),
           "against_ms": round(seconds[theirs] * 1e3, 4), "ratio": round(seconds[ours] / seconds[theirs], 4)}  # fmt: skip
    print(f"{op:10} {shape:28} {ours:15} {row['ms']:10.3f} ms   {theirs:22} {row['against_ms']:10.3f} ms   {row['ratio']:.3f}",
          flush=True)  # fmt: skip
    return row


def bench_threads(args) -> list[dict]:
    """The identity, forward and backward, on one thread and on all."""
    rows, threads = [], torch.get_num_threads()
    for channels, image in CONV_SHAPES:
        for batch in BATCHES:
            x, weight, bias, dy = conv_case(channels, image, 3, batch, 1)
            table = TapTable.identity((3, 3))
            run = forward_backward(lambda: shadow_conv2d(x, weight, bias, table=table, key=1, padding=1, backend="native"),  # noqa: B023
                                   [x, weight, bias], dy)  # fmt: skip

            def on(count, run=run):
                torch.set_num_threads(count)
                run()

            seconds = interleaved({"1 thread": lambda: on(1), f"{threads} threads": lambda: on(threads)}, args.reps)
            torch.set_num_threads(threads)
            rows.append(
                row_of(
                    "threads", f"{channels}ch {image}x{image} batch {batch}", "1 thread", f"{threads} threads", seconds
                )
            )
    return rows


def bench_small(args) -> list[dict]:
    """One forward of a 16-channel 8x8 layer at batch 1, microseconds above nn.Conv2d's."""
    x = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    plain = torch.nn.Conv2d(16, 16, 3, padding=1)
    layer = __import__("watnn").WATConv2d(
        16, 16, 3, padding=1, transform=T.RandomAffine(0, translate=(0.3, 0.3)), backend="native"
    )
    with torch.no_grad():
        many = {
            "nn.Conv2d": lambda: [plain(x) for _ in range(200)],
            "WATConv2d": lambda: [layer(x) for _ in range(200)],
        }
        seconds = interleaved(many, max(args.reps, 9))
    return [row_of("small", "200 x 16ch 8x8 batch 1 fwd", "WATConv2d", "nn.Conv2d", seconds)]


def bench_saved() -> list[dict]:
    """Bytes that autograd keeps beyond what nn.Conv2d's keeps."""
    x, weight, bias, _ = conv_case(64, 16, 3, 16, 1)
    table = T.RandomAffine(0, translate=(0.3, 0.3)).tap_table((3, 3))

    def saved(function):
        storages = {}

        def keep(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            function()
        return sum(storages.values())

    ours = saved(lambda: shadow_conv2d(x, weight, bias, table=table, key=1, padding=1, backend="native"))
    plain = saved(lambda: F.conv2d(x, weight, bias, padding=1))
    print(f"saved for backward beyond nn.Conv2d's: {ours - plain} bytes")
    return [{"op": "saved", "shape": "64ch 16x16 batch 16", "variant": "bytes", "against": "nn.Conv2d", "ms": ours,
             "against_ms": plain, "ratio": ours - plain}]  # fmt: skip


BARS = [  # op, variant, against, bar on the geometric mean, bar on the worst shape
    ("conv", ("translate",), "nn.Conv2d", 0.80, None),
    ("conv", ("identity",), "nn.Conv2d", 1.00, 1.15),
    ("conv", ("resized_crop",), "nn.Conv2d", 1.08, None),
    ("conv", ("translate",), "official", 0.45, None),
    ("depthwise", ("translate",), "nn.Conv2d", 0.60, None),
    ("linear", ("dropconnect", "multiplicative"), "nn.Linear", 1.00, None),
    ("linear", ("dropconnect", "multiplicative"), "eager", 0.40, None),
]


def report(rows: list[dict]) -> None:
    print(f"\n{'':58} {'geomean':>8} {'worst':>8} {'bar':>8}")
    for op, variants, against, bar, worst_bar in BARS:
        ratios = [
            r["ratio"] for r in rows if r["op"] == op and r["variant"] in variants and r["against"].startswith(against)
        ]
        if not ratios:
            continue
        mean, worst = math.exp(statistics.fmean(map(math.log, ratios))), max(ratios)
        met = mean <= bar and (worst_bar is None or worst <= worst_bar)
        name = f"{op} {' and '.join(variants)} / {against}"
        print(f"{name:58} {mean:8.3f} {worst:8.3f} {bar:8.2f} {'met' if met else 'MISSED'}")
    threads = [r["ratio"] for r in rows if r["op"] == "threads"]
    if threads:
        mean = math.exp(statistics.fmean(map(math.log, threads)))
        print(
            f"{'conv, one thread / all threads':58} {mean:8.3f} {min(threads):8.3f} {1.8:8.2f} {'met' if min(threads) >= 1.8 else 'MISSED'}"
        )
    for r in rows:
        if r["op"] == "small":
            extra = (r["ms"] - r["against_ms"]) / 200 * 1e3
            print(
                f"{'small forward, microseconds above nn.Conv2d':58} {extra:8.2f} {'':8} {15:8} {'met' if extra <= 15 else 'MISSED'}"
            )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--reps", type=int, default=9, help="rounds; a time is their median")
    parser.add_argument("--only", default="conv,depthwise,linear,threads,small,saved", help="comma-separated parts")
    parser.add_argument(
        "--out", type=Path, help="CSV file (default: results/<processor>/native_bars.csv beside this file)"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    parts, rows = args.only.split(","), []
    for channels, image in CONV_SHAPES if "conv" in parts else []:
        for batch in BATCHES:
            rows += bench_conv(channels, image, 3, batch, False, args)
    for channels, image, kernel in DEPTHWISE_SHAPES if "depthwise" in parts else []:
        for batch in BATCHES:
            rows += bench_conv(channels, image, kernel, batch, True, args)
    for size in LINEAR_SHAPES if "linear" in parts else []:
        for count in LINEAR_ROWS:
            rows += bench_linear(size, count, args)
    rows += bench_threads(args) if "threads" in parts else []
    rows += bench_small(args) if "small" in parts else []
    rows += bench_saved() if "saved" in parts else []
    report(rows)
    out = (
        args.out
        or Path(__file__).parent / "results" / processor().replace(" ", "_").replace("/", "_") / "native_bars.csv"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/native_bars.py", *sys.argv[1:]])
    isa = torch.ops.wat_kernels.native_isa("")
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "threads", "isa", "cpu", "torch", "python", "command"])
        writer.writeheader()
        for row in rows:
            writer.writerow({**row, "threads": args.threads, "isa": isa, "cpu": processor(), "torch": torch.__version__,
                             "python": platform.python_version(), "command": command})  # fmt: skip
    print(f"\n{out}")


if __name__ == "__main__":
    main()
