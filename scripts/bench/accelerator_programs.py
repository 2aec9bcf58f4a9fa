"""The sections of accelerator.py that measure single programs: peaks, layers, steps and stacks."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar, get_args

import benching
import flax.linen as linen
import jax
import jax.numpy as jnp
import layers
import optax
import step
from accelerator import Bench
from jax import lax

from cnnexp.config.execution import Sweep
from cnnexp.core.errors import describe_exception
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
# The names of the precisions: the dtype, and `model.precision` ("highest" in JAX's terms).
PRECISIONS = {
    "float32": ("float32", "float32"),
    "tf32": ("float32", "default"),
    "bfloat16": ("bfloat16", "float32"),
}
Name = TypeVar("Name")
TIMING_MS = 10.0  # a timing lasts at least that long
STEPS = 30  # in one call of a training
STACK = 8  # runs of a stack of layers


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


def peak_of(bench: Bench, precision: str) -> float | None:
    """Return the measured TFLOP/s of matrix products, or of copies in TB/s; None before they are measured."""
    rates = [r for r in bench.rows("peaks") if r.get("precision") == precision or r["case"] == precision]
    return next((row.get("tflops") or row.get("tbytes") for row in reversed(rates)), None)


def compile_calls(jobs: Mapping[Name, Callable[[], Any]]) -> dict[Name, Any]:
    """Compile programs in threads, one per core; a program that cannot be compiled is an exception."""

    def attempt(job: Callable[[], Any]) -> Any:
        try:
            return job()
        except Exception as error:
            return error

    with ThreadPoolExecutor(cores()) as threads:
        return dict(zip(jobs, threads.map(attempt, jobs.values()), strict=True))


def time_call(bench: Bench, section: str, case: str, call: Any, per: int) -> float | None:
    """Return the milliseconds of a call per `per`; None, and a row that says why, if it fails."""
    if bench.seconds_left <= 0:
        call = TimeoutError("left out: out of time")
    try:
        if isinstance(call, Exception):
            raise call
        return benching.medians({case: call}, 5, at_least_ms=TIMING_MS)[case] / per
    except Exception as error:  # mostly that it does not fit into the memory
        bench.add(section, case, note=describe_exception(error)[:100])
        return None


def allow_torch(torch: Any, precision: str, call: benching.Call) -> benching.Call:
    """Set the precision of PyTorch for a call."""

    def timed() -> object:
        allowed = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            return call()

    return timed


class FlaxNet(linen.Module):
    """The net of step.py, as Flax has it."""

    tying: str
    dtype: Any

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits."""
        layer: Any = linen.Conv if self.tying == "shared" else linen.ConvLocal
        for features, kernel in zip(step.FEATURES, step.KERNELS, strict=True):
            x = layer(features, (kernel, kernel), dtype=self.dtype)(x)
            x = linen.max_pool(linen.relu(x), (2, 2), (2, 2))
        return linen.Dense(10, dtype=self.dtype)(x.reshape(len(x), -1))


def flax_epoch(tying: str, precision: str, runs: int, steps: int) -> benching.Call:
    """Compile the same steps in Flax and Optax: one loop, under `jax.vmap` if there are several runs."""
    dtype, of_products = PRECISIONS[precision]
    net, optimizer = FlaxNet(tying, jnp.dtype(dtype)), optax.sgd(0.01, momentum=0.9)
    pixels, labels = map(jnp.asarray, step.pictures())
    mean, deviation = float(pixels.mean()), float(pixels.std())

    def train_step(
        number: jax.Array, state: tuple, key: jax.Array, pixels: jax.Array, labels: jax.Array
    ) -> tuple:
        params, opt_state = state
        chosen = jax.random.randint(jax.random.fold_in(key, number), (128,), 0, step.SIZE)
        x = (pixels[chosen].astype(jnp.float32) - mean) / deviation

        def mean_loss(params: Any) -> jax.Array:
            logits = net.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()  # pyright: ignore

        updates, opt_state = optimizer.update(jax.grad(mean_loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    def init(key: jax.Array) -> tuple:
        params = net.init(key, jnp.zeros((1, 28, 28, 1)))
        return params, optimizer.init(params)

    def train(state: tuple, key: jax.Array, pixels: jax.Array, labels: jax.Array) -> tuple:
        one = partial(train_step, key=key, pixels=pixels, labels=labels)
        return lax.fori_loop(0, steps, one, state)

    if runs > 1:
        init, train = jax.vmap(init), jax.vmap(train, in_axes=(0, 0, None, None))
    keys = jax.random.split(jax.random.key(0), runs) if runs > 1 else jax.random.key(0)
    with jax.default_matmul_precision(of_products):
        state = [jax.jit(init)(keys)]
        trained = jax.jit(train, donate_argnums=0).lower(state[0], keys, pixels, labels).compile()

    def call() -> object:
        state[0] = trained(state[0], keys, pixels, labels)
        return state[0]

    return call


class Case(NamedTuple):
    """A training to time.

    Attributes:
        name: Its name in the table.
        runs: The number of runs that it trains together.
        compile: Returns the call.
        flops: Of a step of a run; None for baselines, which are measured first.
    """

    name: str
    runs: int
    compile: Callable[[], benching.Call]
    flops: float | None = None


def list_cases(tying: str, precision: str, stacks: Sequence[int], steps: int) -> list[Case]:
    """List the baselines and our stacks of one tying and precision."""
    dtype, of_products = PRECISIONS[precision]
    config = step.config_of(tying, "null" if dtype == "float32" else dtype, of_products)
    title, flops = f"{tying} {precision}", step.step_flops(config)
    cases = []
    if (torch := benching.torch_or_none()) is not None:
        call = partial(step.torch_epoch, torch, tying, steps)
        cases.append(Case(f"{title} eager PyTorch", 1, lambda: allow_torch(torch, precision, call())))
    for runs in {1, min(64, max(stacks))}:
        name = "Flax alone" if runs == 1 else f"Flax vmapped over {runs}"
        cases.append(Case(f"{title} {name}", runs, partial(flax_epoch, tying, precision, runs, steps)))
    for runs in stacks:
        call = partial(step.epoch, config, runs, steps)
        cases.append(Case(f"{title} {step.name_of(runs)}", runs, call, flops))
    return cases


def measure_steps(bench: Bench) -> None:
    """Add the time of a training step per run, alone and in stacks, and that of the baselines."""
    configure_jax()
    stacks, steps = ((1, 2), 1) if bench.tiny else ((1, 8, 64, 512), STEPS)
    for precision in ("float32",) if bench.tiny else PRECISIONS:
        for tying in ("shared",) if bench.tiny else ("shared", "local"):
            add_cases(bench, "steps", list_cases(tying, precision, stacks, steps), precision, steps)


def add_cases(bench: Bench, section: str, cases: Sequence[Case], precision: str, steps: int) -> None:
    """Compile the cases of one tying and precision together, then time one after the other."""
    calls = compile_calls({case.name: case.compile for case in cases})
    times: dict[str, float] = {}
    title, solo = " ".join(cases[0].name.split()[:2]), None
    for case in cases:
        ms = time_call(bench, section, case.name, calls.pop(case.name), steps * case.runs)
        if ms is None:
            continue
        if case.flops is None:
            times[case.name.removeprefix(f"{title} ")] = ms
            bench.add(section, case.name, ms=ms)
            continue
        solo = ms if case.runs == 1 else solo
        rates = rate_flops(bench, case.flops, ms, precision)
        of_solo = {"of_solo": ms / solo} if solo and case.runs > 1 else {}
        against = {name: theirs / ms for name, theirs in times.items() if case.runs > 1 or "vmap" not in name}
        bench.add(section, case.name, ms=ms, **rates, **of_solo, against=against)


def rate_flops(bench: Bench, flops: float, ms: float, precision: str) -> dict[str, float]:
    """Return the rate, and the fraction of the measured rate of a large matrix product."""
    rate = flops / ms / 1e9
    peak = peak_of(bench, precision)
    return {"tflops": rate, **({"of_matmul": rate / peak} if peak else {})}


def measure_stacks(bench: Bench) -> None:
    """Add the time of a training step per run by each way of computing a stack."""
    configure_jax()
    if "stacking" not in Sweep.model_fields:
        bench.add("stacks", "this version computes stacks in one way only")
        return
    ways = get_args(Sweep.model_fields["stacking"].annotation)
    stacks, steps = ((2,), 1) if bench.tiny else ((8, 64, 512), STEPS)
    for runs, tying in product(stacks, ("shared",) if bench.tiny else ("shared", "local")):
        cases = []
        for way in ways:
            config = step.config_of(tying, "null", "float32", f"sweep.stacking={way}")
            call = partial(step.epoch, config, runs, steps)
            cases.append(Case(f"{tying} {way} {runs} runs", runs, call, step.step_flops(config)))
        add_cases(bench, "stacks", cases, "float32", steps)


def measure_layers(bench: Bench) -> None:
    """Add the time of a forward and backward pass of a layer per run, alone and in a stack."""
    configure_jax()
    shapes = [layers.Shape(2, 6, 1, 2, 3, 1)] if bench.tiny else [layers.Shape(*s) for s in layers.SHAPES]
    for number, shape in enumerate(shapes):
        cases = list(product(("shared", "local"), ["float32"] if bench.tiny else PRECISIONS))
        if number % 2 == 0:  # every other shape in all precisions, and every other with all tyings
            cases = [(tying, precision) for tying, precision in cases if precision == "float32"]
        else:
            cases += [(tying, "float32") for tying in ("tiled(2)", "low_rank(2)")]
        if number < 2 or bench.tiny:  # larger banks of dense layers take gigabytes
            cases.append(("dense", "float32"))
        add_layers(bench, shape, cases)


def add_layers(bench: Bench, shape: layers.Shape, cases: Sequence[tuple[str, str]]) -> None:
    """Compile all layers of a shape together, then time one after the other."""
    jobs = {
        (tying, precision, name): partial(compile_layer, layer, shape, precision, 2 if bench.tiny else STACK)
        for tying, precision in cases
        for name, layer in layers.layers(shape, tying).items()
    }
    programs = compile_calls(jobs)
    torch = None if bench.tiny else benching.torch_or_none()
    for tying, precision in cases:
        for setting, per in (("solo", 1), ("stack", 2 if bench.tiny else STACK)):
            title = f"{tying} {'x'.join(map(str, shape))} {precision} {setting}"
            times: dict[str, float] = {}
            for name in layers.layers(shape, tying):
                call = programs[tying, precision, name]
                call = call if isinstance(call, Exception) else call[setting]
                if (ms := time_call(bench, "layers", f"{title} {name}", call, per)) is not None:
                    times[name] = ms
            if torch is not None and precision != "bfloat16" and tying != "dense":
                call = allow_torch(torch, precision, layers.torch_call(torch, shape, tying))
                if (ms := time_call(bench, "layers", f"{title} PyTorch", call, 1)) is not None:
                    times["PyTorch"] = ms
            if (ms := times.pop("ours", None)) is not None:
                flops = 6 * count_layer(shape.geometry, tying, "none").macs * shape.batch
                against = {name: theirs / ms for name, theirs in times.items()}
                rates = rate_flops(bench, flops, ms, precision)
                bench.add("layers", title, ms=ms, **rates, against=against)


def compile_layer(
    layer: layers.Layer, shape: layers.Shape, precision: str, runs: int
) -> dict[str, benching.Call]:
    """Compile a layer alone and in a stack."""
    dtype, of_products = PRECISIONS[precision]
    with jax.default_matmul_precision(of_products):
        programs = layers.settings(layer, shape, jnp.dtype(dtype), ("solo", "stack"), runs)
    return {name: partial(program, *arguments) for name, (program, arguments) in programs.items()}


SECTIONS = {
    "peaks": measure_peaks,
    "steps": measure_steps,
    "layers": measure_layers,
    "stacks": measure_stacks,
}
