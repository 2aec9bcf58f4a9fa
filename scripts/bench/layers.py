#!/usr/bin/env python3
"""Time forward and backward passes of one layer, side by side with those of other libraries.

    .venv/bin/python scripts/bench/layers.py [--json PATH] [--shapes 0,64x32x64x64x3x1] [--dtype bfloat16]

Gradients by weights and by input. `solo` is one call, `scan` steps of gradient descent in `lax.scan`,
`stack` 8 runs as cnnexp trains them, `vmap` 8 under `jax.vmap`; all in milliseconds a run and a step.
Memory: XLA's temporary buffers. Each layer meets its images in the layout that it works in: nobody
transposes. PyTorch, where it is installed, runs eagerly, one run at a time.

What keeps local layers from a larger lead in `scan` on CPU: ConvLocal is three to five times faster there
than by itself, as XLA moves its patch extraction out of the way, and both then do the same small products,
one a position, which run at a fifth of a large product's rate.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import benching
import flax.linen as linen
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from cnnexp.nn.feature_maps import Layout
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.ops.kernel_bank import Lowering, apply_kernel_bank, fastest_layout
from cnnexp.nn.tying import Tying, bank_shape, count_layer
from cnnexp.training.strategies import map_in_chunks

SHAPES = (  # batch, side, channels in and out, kernel, stride
    (128, 28, 1, 16, 5, 1),
    (128, 14, 16, 32, 3, 1),
    (128, 28, 16, 32, 5, 2),
    (64, 32, 64, 64, 3, 1),
)
STEPS = 4
Weights = dict[str, jax.Array]
Function = Callable[[Weights, jax.Array], jax.Array]
SETTINGS = ("solo", "scan", "stack", "vmap")


class Shape(NamedTuple):
    """One shape to measure."""

    batch: int
    side: int
    channels: int
    features: int
    kernel: int
    stride: int

    @property
    def geometry(self) -> Geometry:
        """The geometry of the layer."""
        side, kernel, stride = ((n, n) for n in (self.side, self.kernel, self.stride))
        return Geometry(
            in_shape=(*side, self.channels), features=self.features, kernel_size=kernel, stride=stride
        )


class Layer(NamedTuple):
    """A layer as a function of weights and images, with the shapes of the weights."""

    apply: Function
    weights: dict[str, tuple[int, ...]]
    layout: Layout = "NHWC"


def layers(shape: Shape, tying: str, lowering: Lowering = "auto") -> dict[str, Layer]:
    """Return the layers of cnnexp and of other libraries, each in its own layout."""
    geometry, tied = shape.geometry, Tying.parse(tying)
    layout = fastest_layout(geometry, tied, lowering) or "NHWC"
    shapes: dict[str, tuple[int, ...]] = {"bank": bank_shape(geometry, tied)}
    if tied.kind == "low_rank":
        shapes["mixing"] = (*geometry.out_size, tied.size)
    apply = partial(_ours, geometry=geometry, tying=tied, layout=layout, lowering=lowering)
    ours = Layer(apply, shapes, layout)
    window, sizes = (shape.kernel, shape.kernel), (shape.channels, shape.features)
    if tied.kind == "dense":
        units = {"kernel": (geometry.in_units, geometry.out_units)}
        return {"ours": ours, "jnp.dot": Layer(lambda w, x: _dense(w, x, geometry), units)}
    if tied.kind == "shared":
        conv = nnx.Conv(*sizes, window, strides=shape.stride, use_bias=False, rngs=nnx.Rngs(0))
        graph, _, rest = nnx.split(conv, nnx.Param, ...)

        def flax_conv(weights: Weights, x: jax.Array) -> jax.Array:
            return nnx.merge(graph, nnx.State({"kernel": nnx.Param(weights["kernel"])}), rest)(x)

        return {"ours": ours, "nnx.Conv (lax.conv)": Layer(flax_conv, {"kernel": (*window, *sizes)})}
    module = linen.ConvLocal(shape.features, window, strides=(shape.stride, shape.stride), use_bias=False)

    def conv_local(weights: Weights, x: jax.Array) -> jax.Array:
        return module.apply({"params": weights}, x)  # pyright: ignore

    kernel_shape = (*geometry.out_size, geometry.fan_in, shape.features)
    return {"ours": ours, "linen.ConvLocal": Layer(conv_local, {"kernel": kernel_shape})}


def _ours(weights: Weights, x: jax.Array, geometry: Geometry, tying: Tying, **how: Any) -> jax.Array:
    return apply_kernel_bank(x, weights["bank"], geometry, tying, mixing=weights.get("mixing"), **how)


def _dense(weights: Weights, x: jax.Array, geometry: Geometry) -> jax.Array:
    return (x.reshape(len(x), -1) @ weights["kernel"]).reshape(len(x), *geometry.out_shape)


def settings(
    layer: Layer,
    shape: Shape,
    dtype: Any,
    names: tuple[str, ...] = SETTINGS,
    runs: int = 8,
    length: int = STEPS,
) -> dict[str, tuple[Any, tuple]]:
    """Return the compiled program and its arguments for each setting, with stacks and loops of a length."""

    def both(w: Weights, x: jax.Array, g: jax.Array) -> tuple[Weights, jax.Array]:
        y, pull = jax.vjp(layer.apply, w, x)
        return pull(g + 0 * y)  # the forward pass counts too

    def steps(w: Weights, x: jax.Array, g: jax.Array) -> tuple[Weights, jax.Array]:
        def step(carry: tuple[Weights, jax.Array], _: None) -> tuple[tuple[Weights, jax.Array], None]:
            return jax.tree.map(lambda value, slope: value - 1e-3 * slope, carry, both(*carry, g)), None

        return lax.scan(step, (w, x), None, length=length)[0]

    def arguments(*runs: int) -> tuple[Any, ...]:
        images = ((shape.batch, *size) for size in (shape.geometry.in_shape, shape.geometry.out_shape))
        shapes = [*layer.weights.values(), *(_arranged(size, layer.layout) for size in images)]
        arrays = benching.draw([jax.ShapeDtypeStruct((*runs, *s), dtype) for s in shapes])
        arrays = [jax.device_put(array) for array in arrays]
        return dict(zip(layer.weights, arrays, strict=False)), *arrays[-2:]

    def train_run(run: tuple[Weights, jax.Array, jax.Array]) -> tuple[Weights, jax.Array]:
        return both(*run)

    stack = map_in_chunks(train_run, runs, 1 if jax.default_backend() == "cpu" else 8)
    programs = {
        "solo": (both, ()),
        "scan": (steps, ()),
        "stack": (lambda *stacked: stack(stacked), (runs,)),
        "vmap": (jax.vmap(both), (runs,)),
    }
    given = {name: arguments(*programs[name][1]) for name in names}
    return {name: (jax.jit(programs[name][0]).lower(*given[name]).compile(), given[name]) for name in names}


def _arranged(size: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return tuple(size["NHWC".index(axis)] for axis in layout)


def torch_call(torch: Any, shape: Shape, tying: str) -> Any:
    """Return PyTorch's forward and backward pass: conv2d, or unfold and bmm for one kernel per position."""
    geometry, draw = (
        shape.geometry,
        partial(torch.randn, device="cuda" if torch.cuda.is_available() else "cpu"),
    )
    positions, fan_in = geometry.positions, geometry.fan_in
    x = draw(shape.batch, shape.channels, shape.side, shape.side, requires_grad=True)
    (top, bottom), (left, right) = geometry.pads
    size = (shape.features, shape.channels, shape.kernel, shape.kernel)
    size = size if tying == "shared" else (positions, fan_in, shape.features)
    kernels = draw(*size, requires_grad=True)
    g = draw(shape.batch, shape.features, *geometry.out_size)

    def call() -> tuple[Any, ...]:
        seen = torch.nn.functional.pad(x, (left, right, top, bottom))
        if tying == "shared":
            y = torch.nn.functional.conv2d(seen, kernels, stride=shape.stride)
        else:
            columns = torch.nn.functional.unfold(seen, shape.kernel, stride=shape.stride)
            y = torch.bmm(columns.permute(2, 0, 1), kernels).permute(1, 2, 0).reshape(g.shape)
        return torch.autograd.grad(y, (kernels, x), g)

    return call


def parse_shape(text: str) -> Shape:
    """Read a shape: its index, or its numbers."""
    return Shape(*(map(int, text.split("x")) if "x" in text else SHAPES[int(text)]))


def main() -> None:
    """Measure and print."""
    options = benching.parser(__doc__)
    options.add_argument(
        "--shapes", default="0,1,2,3", help="which of the four shapes, or others, as 64x32x64x64x3x1"
    )
    options.add_argument("--lowering", default="auto", choices=["auto", "conv", "matmul"])
    options.add_argument("--tyings", default="shared,local")
    options.add_argument("--settings", default=",".join(SETTINGS), help="solo, scan, stack or vmap")
    options.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    chosen = options.parse_args()
    benching.use_one_core(chosen)
    torch, rows = benching.torch_or_none(), []
    if torch is None:
        print("PyTorch is not installed: left out")
    heads = ("case", "ms", "GFLOP/s", "MB", "baseline", "ms", "MB", "ratio")
    print("{:44} {:>8} {:>8} {:>7}  {:20} {:>8} {:>7} {:>6}".format(*heads))
    for shape in map(parse_shape, chosen.shapes.split(",")):
        for tying in chosen.tyings.split(","):
            names = tuple(chosen.settings.split(","))
            dtype = jnp.dtype(chosen.dtype)
            rows += measure(shape, tying, torch, dtype, chosen.repeats, names, chosen.lowering)
    benching.save(rows, chosen.json)


def measure(
    shape: Shape,
    tying: str,
    torch: Any,
    dtype: Any,
    repeats: int,
    names: tuple[str, ...] = SETTINGS,
    lowering: Lowering = "auto",
) -> list[dict[str, Any]]:
    """Return the rows of one shape and tying."""
    flops = 3 * 2 * count_layer(shape.geometry, tying, "none").macs * shape.batch
    compared = layers(shape, tying, lowering)
    compiled = {name: settings(layer, shape, dtype, names) for name, layer in compared.items()}
    rows = []
    for setting in names:
        per_call = {"solo": 1, "scan": STEPS, "stack": 8, "vmap": 8}[setting]
        programs = {name: settings[setting] for name, settings in compiled.items()}
        calls = {name: partial(program, *given) for name, (program, given) in programs.items()}
        memory = {
            name: program.memory_analysis().temp_size_in_bytes / 1e6
            for name, (program, _) in programs.items()
        }
        if torch is not None:
            calls["torch"] = torch_call(torch, shape, tying)
        times = benching.medians(calls, repeats)
        times = {name: ms / (1 if name == "torch" else per_call) for name, ms in times.items()}
        for name in list(times)[1:]:
            case = f"{tying} {'x'.join(map(str, shape))} {setting}"
            rows.append(
                benching.row(
                    case,
                    times["ours"],
                    name,
                    times[name],
                    gflops=flops / times["ours"] / 1e6,
                    ours_mb=memory["ours"],
                    baseline_mb=memory.get(name),
                )
            )
            _print(rows[-1])
    return rows


def _print(row: dict[str, Any]) -> None:
    theirs = "" if row["baseline_mb"] is None else f"{row['baseline_mb']:.0f}"
    print(
        f"{row['case']:44} {row['ours_ms']:8.2f} {row['gflops']:8.1f} {row['ours_mb']:7.0f}  "
        f"{row['baseline']:20} {row['baseline_ms']:8.2f} {theirs:>7} {row['ratio']:6.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
