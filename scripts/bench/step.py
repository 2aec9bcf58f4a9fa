#!/usr/bin/env python3
"""Time a whole training step of a two-layer convolutional network, side by side with eager PyTorch.

    .venv/bin/python scripts/bench/step.py [--json PATH] [--runs 8,64] [--dtype bfloat16] [--one-core]

Convolution 5x5x16, pooling, convolution 3x3x32, pooling, dense 10 on the shapes of Fashion-MNIST (the
pixels are random: the time does not depend on them), batches of 128, SGD with momentum, as cnnexp trains
it: one loop over the steps of an epoch. `resnet` is the residual network of depth 8, with batch
normalisation. `stack of 8` trains eight such runs in one program. PyTorch has its images in memory and
chooses them by index. `limit`: the step's own multiply-adds at the rate of a large matrix product. In
milliseconds per run and step.

With `--one-core` all are measured in CPU time on one core, which other programs disturb little.
docs/performance.md says what keeps the shared step from its limit on CPU. Without gain: tiles of positions,
barriers around copies, patches by gather or dynamic slices, batched split-K weight gradients, pooling fused
with its activation, `vmap`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import benching
import jax
import numpy as np
from hydra import compose, initialize_config_dir
from jax.sharding import Mesh, NamedSharding

from cnnexp.config import RunConfig, parse
from cnnexp.data.images import make_images
from cnnexp.models.spec import specify_network
from cnnexp.sweep.devices import configure_jax
from cnnexp.sweep.points import to_dict
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.setup import make_setup
from cnnexp.training.stacking import (
    RUNS,
    WHOLE,
    Subsets,
    compile_stack,
    make_device_mesh,
    put_on_devices,
)

SIZE, STEPS = 4096, 10
FEATURES, KERNELS = (16, 32), (5, 3)


def config_of(tying: str, dtype: str, precision: str, *more: str) -> RunConfig:
    """Compose the configuration of a run from the same files as every run's; `resnet` is one of depth 8."""
    two_layers = [
        f"model.tying={tying}",
        f"model.features={list(FEATURES)}",
        f"model.kernel_size={list(KERNELS)}",
        "model.bias=same",
    ]
    overrides = [
        *(["model=resnet", "model.depth=8"] if tying == "resnet" else two_layers),
        f"model.dtype={dtype}",
        f"model.precision={precision}",
        "data=fashion_mnist",
        f"data.train_size={SIZE}",
        "optim=sgd",
        *more,
    ]
    conf = Path(__file__).resolve().parents[2] / "conf"
    with initialize_config_dir(str(conf), version_base=None):
        return parse(to_dict(compose("config", overrides=overrides)))


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """Draw images and labels."""
    draw = np.random.default_rng(0)
    shape = (SIZE, 28, 28, 1)
    return draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, 10, SIZE)


def epoch(
    config: RunConfig, runs: int, steps: int = STEPS, options: Mapping[str, Any] | None = None
) -> benching.Call:
    """Compile some steps of a stack as one program, with options of XLA; the time is that of any weights."""
    pixels, labels = pictures()
    mesh = make_device_mesh(runs)
    images = put_on_devices(make_images(pixels, labels, pixels[:1], labels[:1]), WHOLE, mesh)
    one = jax.tree.map(np.asarray, Hyperparameters.from_config(config))
    hyper = put_on_devices(jax.tree.map(lambda leaf: np.full(runs, leaf, leaf.dtype), one), RUNS, mesh)
    subset, sizes = np.tile(np.arange(SIZE, dtype=np.int32), (runs, 1)), np.full(runs, SIZE, np.int32)
    subsets, number = put_on_devices(Subsets(subset, sizes, subset[:, :0]), RUNS, mesh), np.int32(steps)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), runs))
    programs: Any = compile_stack(make_setup(config), mesh)
    shapes = jax.tree.map(partial(_on, mesh), jax.eval_shape(programs.init, keys, hyper))
    lowered = programs.advance.lower(shapes, hyper, subsets, images, number)
    advance = lowered.compile(dict(options or {}))
    state: list[Any] = []

    def call() -> object:
        last = state.pop() if state else put_on_devices(benching.draw(shapes), RUNS, mesh)
        state.append(advance(last, hyper, subsets, images, number))
        return state[0].step

    return call


def _on(mesh: Mesh, shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=NamedSharding(mesh, RUNS))


def torch_epoch(torch: Any, tying: str, steps: int = STEPS) -> benching.Call:
    """Train the same steps in eager PyTorch."""
    functional, device = torch.nn.functional, "cuda" if torch.cuda.is_available() else "cpu"
    pixels, labels = (torch.tensor(array, device=device) for array in pictures())
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    make = torch_resnet if tying == "resnet" else partial(torch_two_layers, tying=tying)
    weights, logits = make(torch, device)
    optimizer = torch.optim.SGD(weights, lr=0.01, momentum=0.9)
    mean, std = float(pixels.float().mean()), float(pixels.float().std())

    def call() -> None:
        for chosen in torch.randperm(SIZE, device=device).split(128)[:steps]:
            loss = functional.cross_entropy(logits((pixels[chosen].float() - mean) / std), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def torch_two_layers(torch: Any, device: str, tying: str) -> tuple[list[Any], Callable[[Any], Any]]:
    """Return the weights of the two-layer network and the function that computes its logits."""
    functional, sides, channels = torch.nn.functional, (28, 14), (1, *FEATURES)
    weights = []
    for side, c, o, k in zip(sides, channels, channels[1:], KERNELS, strict=False):
        shape = (o, c, k, k) if tying == "shared" else (side * side, c * k * k, o)
        weights.append(torch.randn(*shape, device=device) * (2 / (c * k * k)) ** 0.5)
        weights.append(torch.zeros(o, *(() if tying == "shared" else (side, side)), device=device))
    weights += [torch.randn(10, 7 * 7 * FEATURES[1], device=device) * 0.02, torch.zeros(10, device=device)]
    weights = [w.requires_grad_() for w in weights]

    def layer(x: Any, kernels: Any, bias: Any, k: int) -> Any:
        if tying == "shared":
            return functional.conv2d(x, kernels, bias, padding=k // 2)
        columns = functional.unfold(x, k, padding=k // 2)
        y = torch.bmm(columns.permute(2, 0, 1), kernels).permute(1, 2, 0)
        return y.reshape(len(x), -1, *x.shape[2:]) + bias

    def logits(x: Any) -> Any:
        for index, k in enumerate(KERNELS):
            y = layer(x, weights[2 * index], weights[2 * index + 1], k)
            x = functional.max_pool2d(functional.relu(y), 2)
        return functional.linear(x.flatten(1), *weights[-2:])

    return weights, logits


def torch_resnet(torch: Any, device: str) -> tuple[list[Any], Callable[[Any], Any]]:
    """Return the weights of the residual network of depth 8 and the function that computes its logits."""
    nn, functional = torch.nn, torch.nn.functional

    def unit(c: int, o: int, stride: int) -> Any:
        return nn.Sequential(nn.Conv2d(c, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o))

    stem, head = unit(1, 16, 1), nn.Linear(64, 10)
    blocks = [(unit(c, o, o // c), unit(o, o, 1)) for c, o in pairwise((16, 16, 32, 64))]
    modules = nn.ModuleList([stem, head, *(unit for block in blocks for unit in block)]).to(device)

    def logits(x: Any) -> Any:
        x = functional.relu(stem(x))
        for first, second in blocks:
            y = second(functional.relu(first(x)))
            stride, missing = x.shape[2] // y.shape[2], y.shape[1] - x.shape[1]
            shortcut = functional.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, 0, missing))
            x = functional.relu(y + shortcut)
        return head(x.mean((2, 3)))

    return list(modules.parameters()), logits


def step_flops(config: RunConfig) -> float:
    """Count the floating-point operations of a step; the first layer needs no gradient of the pixels."""
    passes = [2 * layer.counts.macs for layer in specify_network(config)]
    return 128 * (3 * sum(passes) - passes[0])


def main() -> None:
    """Measure and print."""
    options = benching.parser(__doc__)
    options.add_argument("--runs", default="8", help="sizes of stacks, besides 1")
    options.add_argument(
        "--nets", default="shared,local,resnet", help="the two-layer net by its tying, resnet"
    )
    options.add_argument("--dtype", default="null", help="null (float32) or bfloat16")
    options.add_argument("--precision", default="float32", help="as model.precision")
    chosen = options.parse_args()
    benching.use_one_core(chosen)
    configure_jax()
    torch, rows = benching.torch_or_none(), []
    if torch is None:
        print("PyTorch is not installed: left out")
    print(f"{'case':24} {'ms':>8} {'GFLOP/s':>8}  {'baseline':16} {'ms':>8} {'ratio':>6}")
    for tying in chosen.nets.split(","):
        config = config_of(tying, chosen.dtype, chosen.precision)
        stacks = [1, *map(int, chosen.runs.split(","))]
        product, product_flops = benching.matmul_call()
        calls: dict[str, Callable[[], object]] = {f"{tying} {name_of(n)}": epoch(config, n) for n in stacks}
        if torch is not None:
            calls["eager PyTorch"] = torch_epoch(torch, tying)
        times = benching.medians(calls | {"limit": product}, chosen.repeats)
        flops = step_flops(config)
        for name, n in zip(list(calls), stacks, strict=False):
            ms, show = times[name] / (STEPS * n), partial(add_row, rows, name, flops)
            if torch is not None:
                show(ms, "eager PyTorch", times["eager PyTorch"] / STEPS)
            show(ms, "limit (matmul)", times["limit"] * flops / product_flops)
            if n > 1:
                show(ms, "solo", times[f"{tying} solo"] / STEPS)
    benching.save(rows, chosen.json)


def name_of(runs: int) -> str:
    """Return the name of a stack."""
    return "solo" if runs == 1 else f"stack of {runs}"


def add_row(
    rows: list[dict[str, Any]], case: str, flops: float, ms: float, baseline: str, baseline_ms: float
) -> None:
    """Print a comparison and keep it."""
    row = benching.row(case, ms, baseline, baseline_ms, gflops=flops / ms / 1e6)
    rows.append(row)
    print(
        f"{case:24} {ms:8.2f} {row['gflops']:8.1f}  {baseline:16} {baseline_ms:8.2f} {row['ratio']:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
