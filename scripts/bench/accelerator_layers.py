"""The sections of accelerator.py that measure matrix products, copies and layers."""

from collections.abc import Sequence
from functools import partial

import benching
import jax
import jax.numpy as jnp
import layers
from accelerator import Bench
from accelerator_programs import (
    PRECISIONS,
    STEPS,
    TIMING_MS,
    allow_torch,
    compile_calls,
    rate_flops,
    time_call,
)

from cnnexp.core.machine import cores
from cnnexp.nn.tying import count_layer
from cnnexp.sweep.devices import configure_jax

# Of dense matrix products in float32, TensorFloat-32 and bfloat16, in TFLOP/s, and of the memory in TB/s. On
# TPUs a float32 product is made of bfloat16 ones, and the datasheets have no figure. Sources: datasheets of
# NVIDIA (without sparsity), and cloud.google.com/tpu/docs/system-architecture-tpu-vm.
DATASHEETS = {
    "NVIDIA H100 80GB HBM3": (67.0, 494.5, 989.0, 3.35),
    "NVIDIA H200": (67.0, 494.5, 989.0, 4.8),
    "NVIDIA H100 PCIe": (51.0, 378.0, 756.0, 2.0),
    "NVIDIA A100-SXM4-80GB": (19.5, 156.0, 312.0, 2.04),
    "TPU v4": (None, 275.0, 275.0, 1.23),
    "TPU v5 lite": (None, 197.0, 197.0, 0.82),
    "TPU v5": (None, 459.0, 459.0, 2.77),
    "TPU v6 lite": (None, 918.0, 918.0, 1.64),
}
STACK = 8  # runs


def measure_peaks(bench: Bench) -> None:
    """Add the rates of matrix products and of copies."""
    configure_jax()
    kind = jax.devices()[0].device_kind
    sheet = DATASHEETS.get(kind)
    bench.add("peaks", "device", note=f"{kind}, {jax.device_count()} of them, jax {jax.__version__}")
    for index, (name, (dtype, precision)) in enumerate(PRECISIONS.items()):
        with jax.default_matmul_precision(precision):
            call, flops = benching.matmul_call(256 if bench.tiny else 8192, jnp.dtype(dtype))
            ms = benching.medians({name: call}, 5, at_least_ms=TIMING_MS)[name]
        of = {"of_datasheet": flops / ms / 1e9 / sheet[index]} if sheet and sheet[index] else {}
        bench.add("peaks", f"matrix product, {name}", ms=ms, tflops=flops / ms / 1e9, precision=name, **of)
    array = jnp.ones(2**16 if bench.tiny else 2**28)
    copy = jax.jit(lambda x: x + 1)
    ms = benching.medians({"copy": lambda: copy(array)}, 5, at_least_ms=TIMING_MS)["copy"]
    rate = 2 * array.nbytes / ms / 1e9
    bench.add("peaks", "copy", ms=ms, tbytes=rate, **({"of_datasheet": rate / sheet[3]} if sheet else {}))


def measure_layers(bench: Bench) -> None:
    """Add the time of a forward and backward pass of a layer per run, in a loop and in a stack."""
    configure_jax()
    tiny, shapes = layers.Shape(2, 6, 1, 2, 3, 1), [layers.Shape(*shape) for shape in layers.SHAPES]
    cases = [(tiny if bench.tiny else s, t, "float32") for t in ("local", "shared") for s in shapes]
    cases += [(shapes[i], t, p) for p in ("tf32", "bfloat16") for t in ("local", "shared") for i in (1, 3)]
    cases += [(shapes[1], t, "float32") for t in ("tiled(2)", "low_rank(2)", "dense")]
    cases = [cases[0], cases[4]] if bench.tiny else cases
    at_once = max(1, cores() // 2)  # ours and that of another library
    for start in range(0, len(cases), at_once):
        add_layers(bench, cases[start : start + at_once])


def add_layers(bench: Bench, cases: Sequence[tuple[layers.Shape, str, str]]) -> None:
    """Compile all layers together, then time one after the other."""
    runs = 2 if bench.tiny else STACK
    jobs = {
        (case, name): partial(compile_layer, layer, case[0], case[2], runs)
        for case in cases
        for name, layer in layers.layers(*case[:2]).items()
    }
    programs = compile_calls(jobs)
    torch = None if bench.tiny else benching.torch_or_none()
    for case in cases:
        shape, tying, precision = case
        for setting, per in (("loop", STEPS), (f"stack of {runs}", runs)):
            title = f"{tying} {'x'.join(map(str, shape))} {precision} {setting}"
            calls = {name: (programs[case, name][0], per) for name in layers.layers(shape, tying)}
            calls = {n: (c if isinstance(c, Exception) else c[setting], per) for n, (c, per) in calls.items()}
            if torch is not None and precision != "bfloat16" and tying != "dense":
                call = allow_torch(torch, precision, layers.torch_call(torch, shape, tying))
                calls["PyTorch"] = (call, 1)
            times = {n: time_call(bench, "layers", f"{title} {n}", *call) for n, call in calls.items()}
            if (ms := times.pop("ours")) is not None:
                flops = 6 * count_layer(shape.geometry, tying, "none").macs * shape.batch
                against = {name: theirs / ms for name, theirs in times.items() if theirs is not None}
                rates = rate_flops(bench, flops, ms, precision)
                bench.add("layers", title, ms=ms, **rates, against=against)


def compile_layer(
    layer: layers.Layer, shape: layers.Shape, precision: str, runs: int
) -> dict[str, benching.Call]:
    """Compile a layer in a loop and in a stack."""
    dtype, of_products = PRECISIONS[precision]
    with jax.default_matmul_precision(of_products):
        programs = layers.settings(layer, shape, jnp.dtype(dtype), ("scan", "stack"), runs, STEPS)
    calls = {name: partial(program, *arguments) for name, (program, arguments) in programs.items()}
    return {"loop": calls["scan"], f"stack of {runs}": calls["stack"]}


SECTIONS = {"peaks": measure_peaks, "layers": measure_layers}
