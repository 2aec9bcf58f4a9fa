"""The sections of accelerator.py that measure training steps."""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

import benching
import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
import step
from accelerator import Bench
from jax import lax

from cnnexp.config.execution import Sweep
from cnnexp.core.errors import describe_exception
from cnnexp.core.machine import cores
from cnnexp.sweep.devices import configure_jax

# The names of the precisions: the dtype, and `model.precision` ("highest" in JAX's terms).
PRECISIONS = {
    "float32": ("float32", "float32"),
    "tf32": ("float32", "default"),
    "bfloat16": ("bfloat16", "float32"),
}
Name = TypeVar("Name")
TIMING_MS = 10.0  # a timing lasts at least that long
STEPS = 30  # in one call of a training
WAYS = ("auto", "map", "vmap", "8")  # values of `sweep.stacking`


def peak_of(bench: Bench, precision: str) -> float | None:
    """Return the measured TFLOP/s of matrix products, or of copies in TB/s; None before they are measured."""
    rates = [r for r in bench.rows("peaks") if r.get("precision") == precision or r["case"] == precision]
    return next((row.get("tflops") or row.get("tbytes") for row in reversed(rates)), None)


def compile_calls(jobs: Mapping[Name, Callable[[], Any]]) -> dict[Name, tuple[Any, float]]:
    """Compile programs in threads; return each, or the exception instead, and the seconds that it took."""

    def attempt(job: Callable[[], Any]) -> tuple[Any, float]:
        started = time.perf_counter()
        try:
            call = job()
        except Exception as error:
            call = error
        return call, time.perf_counter() - started

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


def torch_epoch(torch: Any, tying: str, precision: str, steps: int) -> benching.Call:
    """Return the same steps in PyTorch at a precision."""
    return allow_torch(torch, precision, step.torch_epoch(torch, tying, steps))


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
    pixels, labels = step.pictures()
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
    key = jax.eval_shape(lambda: jax.random.key(0))
    keys = jax.ShapeDtypeStruct((runs,) if runs > 1 else (), key.dtype)
    arrays = [jax.device_put(array) for array in (benching.draw(keys), pixels, labels)]
    with jax.default_matmul_precision(of_products):
        shapes = jax.eval_shape(init, keys)
        trained = jax.jit(train, donate_argnums=0).lower(shapes, *arrays).compile()
    state: list[Any] = []

    def call() -> object:
        last = state.pop() if state else jax.device_put(benching.draw(shapes))
        state.append(trained(last, *arrays))
        return state[0]

    return call


class Case(NamedTuple):
    """A training to time.

    Attributes:
        title: Tying and precision, by which cases are compared.
        name: What tells the case from the others of the same title.
        runs: The number of runs that it trains together.
        compile: Returns the call.
        flops: Of a step of a run; None for baselines, which are measured first.
    """

    title: str
    name: str
    runs: int
    compile: Callable[..., benching.Call]
    flops: float | None = None


def list_baselines(tying: str, precision: str, runs: Sequence[int], steps: int) -> list[Case]:
    """List PyTorch, where it is installed, and Flax for these numbers of runs."""
    title, torch = f"{tying} {precision}", benching.torch_or_none()
    cases = [Case(title, "eager PyTorch", 1, partial(torch_epoch, torch, tying, precision, steps))]
    for number in runs:
        name = "Flax alone" if number == 1 else f"Flax vmapped over {number}"
        cases.append(Case(title, name, number, partial(flax_epoch, tying, precision, number, steps)))
    return cases if torch is not None else cases[1:]


def list_stacks(tying: str, precision: str, stacks: Sequence[int], steps: int, *more: str) -> list[Case]:
    """List our stacks; `more` are keys of the configuration."""
    dtype, of_products = PRECISIONS[precision]
    config = step.config_of(tying, "null" if dtype == "float32" else dtype, of_products, *more)
    name = "".join(f" {key.rpartition('.')[2]}" for key in more)
    return [
        Case(
            f"{tying} {precision}",
            step.name_of(runs) + name,
            runs,
            partial(step.epoch, config, runs, steps),
            step.step_flops(config),
        )
        for runs in stacks
    ]


def without_search(case: Case) -> Case:
    """Return the same case, compiled without the search for the fastest kernels."""
    job = partial(case.compile, options={"xla_gpu_autotune_level": 0})
    return case._replace(name=f"{case.name}, no autotuning", compile=job)


def measure_steps(bench: Bench) -> None:
    """Add the time of a training step per run, alone and in stacks, and that of the baselines.

    What decides most comes first: float32, alone and in a stack of 64.
    """
    configure_jax()
    if bench.tiny:
        baselines = list_baselines("shared", "float32", (1, 2), 1)
        add_cases(bench, "steps", baselines + list_stacks("shared", "float32", (1, 2), 1))
        return
    cases: list[Case] = []
    for tying in ("shared", "local"):
        cases += list_baselines(tying, "float32", (1, 64), STEPS)
        cases += list_stacks(tying, "float32", (1, 64), STEPS)
    if jax.default_backend() == "gpu":
        cases += [without_search(c) for c in cases if c.flops and c.runs == 64]
    for precision, tying in product(("tf32", "bfloat16"), ("shared", "local")):
        cases += list_baselines(tying, precision, (), STEPS) + list_stacks(tying, precision, (1, 64), STEPS)
    for runs, tying in product((512, 8), ("shared", "local")):
        cases += list_stacks(tying, "float32", (runs,), STEPS)
    add_cases(bench, "steps", cases)


def measure_stacks(bench: Bench) -> None:
    """Add the time of a training step per run by each way of computing a stack."""
    configure_jax()
    if "stacking" not in Sweep.model_fields:
        bench.add("stacks", "this version computes stacks in one way only")
        return
    stacks, steps = ((2,), 1) if bench.tiny else ((64, 8, 512), STEPS)
    cases = []
    for runs, tying, way in product(stacks, ("shared",) if bench.tiny else ("shared", "local"), WAYS):
        cases += list_stacks(tying, "float32", (runs,), steps, f"sweep.stacking={way}")
    add_cases(bench, "stacks", cases)


def add_cases(bench: Bench, section: str, cases: Sequence[Case]) -> None:
    """Compile as many cases at a time as there are cores, and time them one after the other."""
    times: dict[tuple[str, str], float] = {}
    at_once = max(1, cores() - 2)
    for start in range(0, len(cases), at_once):
        group = cases[start : start + at_once]
        calls = compile_calls({number: case.compile for number, case in enumerate(group)})
        for number, case in enumerate(group):
            call, seconds = calls.pop(number)
            per = case.runs * (1 if bench.tiny else STEPS)
            ms = time_call(bench, section, f"{case.title} {case.name}", call, per)
            if ms is not None:
                times[case.title, case.name] = ms
                bench.add(
                    section, f"{case.title} {case.name}", **_compare(bench, case, times), compile_s=seconds
                )


def _compare(bench: Bench, case: Case, times: Mapping[tuple[str, str], float]) -> dict[str, Any]:
    """Return the values of the row of a case."""
    ms = times[case.title, case.name]
    if case.flops is None:
        return {"ms": ms}
    values = {"ms": ms, **rate_flops(bench, case.flops, ms, case.title.split()[1])}
    if case.runs > 1 and (solo := times.get((case.title, "solo"))):
        values["of_solo"] = ms / solo
    others = {name: theirs for (title, name), theirs in times.items() if title == case.title}
    baselines = {name: theirs / ms for name, theirs in others.items() if "Flax" in name or "Py" in name}
    return {**values, "against": {n: r for n, r in baselines.items() if case.runs > 1 or "vmap" not in n}}


def rate_flops(bench: Bench, flops: float, ms: float, precision: str) -> dict[str, float]:
    """Return the rate, and the fraction of the measured rate of a large matrix product."""
    rate = flops / ms / 1e9
    peak = peak_of(bench, precision)
    return {"tflops": rate, **({"of_matmul": rate / peak} if peak else {})}


SECTIONS = {"steps": measure_steps, "stacks": measure_stacks}
