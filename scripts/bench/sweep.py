#!/usr/bin/env python3
"""Time a whole sweep, from the shell prompt to the last summary, against the same training runs in PyTorch.

    scripts/bench/sweep.py [--sample 12] [--seeds 3] [--json PATH]

Kernel size {3, 5} x stride {1, 2} x tying {shared, local} x 4 learning rates x 3 seeds = 96 trainings of the
two-layer net on 10,000 Fashion-MNIST images for 2 epochs, each evaluated on its training and test images
before the first and after each epoch. Ours: `cnnexp run` with an empty and with a filled compilation cache.
PyTorch: in one process, and in one process per run as `python train.py -m` starts them. `--sample N` has
PyTorch train N runs of each cell's 12 and scales what they took; 12 trains them all.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

KERNELS, STRIDES, TYINGS = (3, 5), (1, 2), ("shared", "local")
LEARNING_RATES = (0.01, 0.02, 0.05, 0.1)
FEATURES, IMAGES, EPOCHS, BATCH = (16, 32), 10_000, 2, 128
Cell = tuple[int, int, str]


def ours(work: Path, name: str, seeds: int) -> float:
    """Return the seconds of the whole command, after checking that its runs exist."""
    overrides = [
        "data=fashion_mnist",
        f"data.train_size={IMAGES}",
        f"model.features={list(FEATURES)}",
        f"model.kernel_size={','.join(map(str, KERNELS))}",
        f"model.stride={','.join(map(str, STRIDES))}",
        f"model.tying={','.join(TYINGS)}",
        "model.bias=same",
        "optim=sgd",
        "optim.schedule=constant",
        f"optim.learning_rate={','.join(map(str, LEARNING_RATES))}",
        f"seed=range({seeds})",
        f"train.epochs={EPOCHS}",
        f"results_dir={work}",
        f"name={name}",
        "tracking.mode=offline",
    ]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(work / "cache")}
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "cnnexp", "run", *overrides], check=True, env=environment)
    seconds = time.perf_counter() - started
    summaries = len(list((work / name).glob("*/summary.json")))
    assert summaries == len(LEARNING_RATES) * seeds * 8, summaries
    return seconds


def torch_training(torch: Any, data: dict[str, Any], cell: Cell, learning_rate: float, seed: int) -> float:
    """Train one run in eager PyTorch with in-memory tensors; return its test accuracy."""
    torch.manual_seed(seed)
    kernel, stride, tying = cell
    functional, device = torch.nn.functional, data["train"][0].device
    layers, side, c = [], 28, 1
    for o in FEATURES:
        out = -(-side // stride)
        shape = (o, c, kernel, kernel) if tying == "shared" else (out * out, c * kernel**2, o)
        weight = torch.randn(*shape, device=device) * (2 / (c * kernel**2)) ** 0.5
        bias = torch.zeros(o, *(() if tying == "shared" else (out, out)), device=device)
        before, after = _same(side, kernel, stride)
        layers.append((weight.requires_grad_(), bias.requires_grad_(), (before, after, before, after), out))
        side, c = out // 2, o
    flat = side * side * c
    head = (torch.randn(10, flat, device=device) / flat**0.5).requires_grad_()
    head_bias = torch.zeros(10, device=device, requires_grad=True)
    weights = [t for layer in layers for t in layer[:2]] + [head, head_bias]
    optimizer = torch.optim.SGD(weights, lr=learning_rate, momentum=0.9)

    def logits(pixels: Any) -> Any:
        x = (pixels.float() - data["mean"]) / data["std"]
        for weight, bias, padding, out in layers:
            x = functional.pad(x, padding)
            if tying == "shared":
                x = functional.conv2d(x, weight, bias, stride=stride)
            else:
                columns = functional.unfold(x, kernel, stride=stride).permute(2, 0, 1)
                x = torch.bmm(columns, weight).permute(1, 2, 0).reshape(len(x), -1, out, out) + bias
            x = functional.max_pool2d(functional.relu(x), 2)
        return functional.linear(x.flatten(1), head, head_bias)

    def accuracy(images: Any, labels: Any) -> float:
        with torch.no_grad():
            chunks = zip(images.split(512), labels.split(512), strict=True)
            scores = [(logits(x), y) for x, y in chunks]
            sum(float(functional.cross_entropy(score, y, reduction="sum")) for score, y in scores)
            return sum(int((score.argmax(1) == y).sum()) for score, y in scores) / len(labels)

    (images, labels), test = data["train"], 0.0
    for epoch in range(EPOCHS + 1):
        if epoch:
            for chosen in torch.randperm(len(images), device=device).split(BATCH):
                loss = functional.cross_entropy(logits(images[chosen]), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        accuracy(images, labels)
        test = accuracy(*data["test"])
    return test


def _same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after the image, as TensorFlow and JAX pad for SAME."""
    total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
    return total // 2, total - total // 2


def torch_data(torch: Any) -> dict[str, Any]:
    """Return the same images for PyTorch."""
    from data import section

    from cnnexp.data.loading import load_images

    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = load_images(section("fashion_mnist", None))
    pixels = [
        np.moveaxis(np.asarray(part), -1, 1) for part in (images.train_images[:IMAGES], images.test_images)
    ]
    labels = [
        np.asarray(part).astype(np.int64) for part in (images.train_labels[:IMAGES], images.test_labels)
    ]
    train, test = (
        (torch.tensor(x.copy(), device=device), torch.tensor(y, device=device))
        for x, y in zip(pixels, labels, strict=True)
    )
    mean, std = (float(value[0]) for value in images.normalisation)
    return {"train": train, "test": test, "mean": mean, "std": std}


def runs_of(seeds: int, sample: int) -> list[tuple[Cell, float, int]]:
    """List the training runs: the first `sample` learning rates and seeds of each cell."""
    cells = list(itertools.product(KERNELS, STRIDES, TYINGS))
    points = list(itertools.product(LEARNING_RATES, range(seeds)))
    step = max(1, len(points) // sample)
    return [(cell, rate, seed) for cell in cells for rate, seed in points[::step][:sample]]


def torch_process(seeds: int, sample: int, index: int | None = None) -> None:
    """Run one PyTorch process: all training runs, or one of them."""
    import torch  # pyright: ignore

    data, runs = torch_data(torch), runs_of(seeds, sample)
    for cell, rate, seed in runs if index is None else [runs[index]]:
        torch_training(torch, data, cell, rate, seed)


def timed(*arguments: str) -> float:
    """Return the seconds of this script in a separate process."""
    started = time.perf_counter()
    subprocess.run([sys.executable, __file__, *arguments], check=True)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    if "--torch-run" in sys.argv:  # a process as PyTorch's users start them: without JAX
        torch_process(*map(int, sys.argv[2:]))
        return
    import benching

    options = benching.parser(__doc__)
    options.add_argument("--sample", type=int, default=12, help="runs of each cell's that PyTorch trains")
    options.add_argument("--seeds", type=int, default=3)
    chosen = options.parse_args()
    total = 8 * len(LEARNING_RATES) * chosen.seeds
    same = (str(chosen.seeds), str(chosen.sample))
    with tempfile.TemporaryDirectory() as work:
        times = {
            f"cnnexp, {state} cache": ours(Path(work), state, chosen.seeds) for state in ("cold", "warm")
        }
    baselines: dict[str, float] = {}
    if benching.torch_or_none() is None:
        print("PyTorch is not installed: left out")
    else:
        trained = len(runs_of(chosen.seeds, chosen.sample))
        together = timed("--torch-run", *same)
        single = [timed("--torch-run", *same, str(i)) for i in range(0, trained, trained // 8)]
        baselines["PyTorch, one process"] = together * total / trained
        baselines["PyTorch, a process per run"] = sum(single) * total / len(single)
        print(f"PyTorch trained {trained} of {total} runs in one process and {len(single)} in their own")
    rows = []
    for case, seconds in times.items():
        print(f"{case:20} {seconds:8.1f} s  {3600 * total / seconds:8.0f} runs/h")
        for baseline, other in baselines.items():
            rows.append(benching.row(case, 1e3 * seconds, baseline, 1e3 * other))
            print(f"  {baseline:28} {other:8.1f} s  ratio {other / seconds:.2f}")
    benching.save(rows, chosen.json)


if __name__ == "__main__":
    main()
