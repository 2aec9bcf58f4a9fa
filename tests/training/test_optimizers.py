"""Optimisers and schedules by name equal those of Optax, and what cannot be trained with is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from cnnexp.config import RunConfig
from cnnexp.config.sections import Optim
from cnnexp.core.errors import UsageError
from cnnexp.core.platforms import compiling_for
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training.loop import StackTrainer
from cnnexp.training.named_optimizers import (
    UNSUITABLE,
    check_optimizer,
    count_slots,
    list_optimizers,
    list_traced_options,
    select_decayed,
)
from cnnexp.training.optimizers import IGNORES_AXES, Hyperparameters, make_optimizer, make_packing
from cnnexp.training.schedule import make_relative_rate
from tests.conftest import Configure, load_once

STEPS = 20
PARAMS = {
    "conv": {"bank": np.linspace(-1, 1, 2 * 3 * 3 * 2 * 4).reshape(2, 3, 3, 2, 4), "bias": np.ones(4)},
    "norm": {"scale": np.full((2, 2, 4), 2.0)},
}
# Optimisers of Optax that the one-line check refuses, and why.
REFUSED = {"sophia": "obj_fn"}


def in_float32(tree: Any) -> Any:
    return jax.tree.map(jnp.float32, tree)


def take_steps(optimizer: optax.GradientTransformation, steps: int = 3) -> Any:
    """The parameters after steps whose gradients are their sines."""
    return take_steps_from(optimizer, in_float32(PARAMS), steps)


def take_steps_from(optimizer: optax.GradientTransformation, params: Any, steps: int = 3) -> Any:
    extended = optax.with_extra_args_support(optimizer)
    state = extended.init(params)
    for _ in range(steps):
        gradients = jax.tree.map(jnp.sin, params)
        updates, state = extended.update(gradients, state, params, value=jnp.float32(1))
        params = optax.apply_updates(params, updates)
    return params


def make(configure: Configure, **optim: Any) -> optax.GradientTransformation:
    config = configure(optim=optim)
    check_optimizer(config.optim, STEPS)
    return make_optimizer(config.optim, Hyperparameters.from_config(config), STEPS)


def assert_equal(tree: Any, expected: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), tree, expected)


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ({"name": "sgd"}, lambda: optax.sgd(0.1, momentum=0.9)),
        ({"name": "sgd", "options": {"nesterov": True}}, lambda: optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ({"name": "adamw", "weight_decay": 0.1}, lambda: optax.adamw(0.1, weight_decay=0.1)),
        ({"name": "adamw", "options": {"b2": 0.9}}, lambda: optax.adamw(0.1, b2=0.9, weight_decay=0)),
        ({"name": "adam", "options": {"b1": 0.8, "eps": 1e-4}}, lambda: optax.adam(0.1, b1=0.8, eps=1e-4)),
        ({"name": "lion", "weight_decay": 0.1}, lambda: optax.lion(0.1, weight_decay=0.1)),
        ({"name": "lamb"}, lambda: optax.lamb(0.1)),
        ({"name": "rmsprop", "options": {"momentum": 0.5}}, lambda: optax.rmsprop(0.1, momentum=0.5)),
        (
            {"name": "prodigy", "options": {"betas": [0.8, 0.9]}},
            lambda: optax.contrib.prodigy(0.1, (0.8, 0.9)),
        ),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
def test_optimisers_by_name_take_the_steps_of_optax(
    configure: Configure, optim: dict[str, Any], expected: Callable[[], optax.GradientTransformation]
) -> None:
    optimizer = make(configure, learning_rate=0.1, **optim)
    assert_equal(take_steps(optimizer), take_steps(expected()))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_state_of_sgd_and_adamw_has_the_structure_of_stored_checkpoints(
    configure: Configure, name: str
) -> None:
    rate = optax.constant_schedule(0.1)
    expected = {
        "sgd": optax.chain(optax.add_decayed_weights(0.0), optax.sgd(rate, momentum=0.9)),
        "adamw": optax.adamw(rate),
    }[name]
    params = in_float32(PARAMS)
    states = [
        jax.tree.structure(optimizer.init(params)) for optimizer in (make(configure, name=name), expected)
    ]
    assert states[0] == states[1]


@pytest.mark.parametrize("name", sorted(set(list_optimizers()) - set(UNSUITABLE)))
def test_every_optimiser_of_optax_is_accepted_or_refused_in_a_line(name: str) -> None:
    optim = Optim(name=name)
    if name in REFUSED:
        with pytest.raises(UsageError, match=REFUSED[name]):
            check_optimizer(optim, STEPS)
    else:
        check_optimizer(optim, STEPS)
        assert 0 <= count_slots(optim) < 8


def test_muon_orthogonalises_every_kernel_of_a_bank(configure: Configure) -> None:
    optimizer = make(configure, name="muon", learning_rate=1.0)
    params: dict[str, Any] = in_float32(
        {"bank": np.random.default_rng(0).normal(size=(2, 3, 3, 2, 4)), "bias": np.ones(4)}
    )
    updates: Any = optimizer.update(params, optimizer.init(params), params)[0]
    for kernel in np.asarray(updates["bank"]).reshape(2, 18, 4):
        assert np.linalg.svd(kernel, compute_uv=False) == pytest.approx([1] * 4, abs=0.35)
    adam = optax.adamw(1.0, nesterov=True, weight_decay=0.0)
    expected, _ = adam.update(params["bias"], adam.init(params["bias"]), params["bias"])
    assert np.asarray(updates["bias"]) == pytest.approx(np.asarray(expected))


def test_weight_decay_leaves_out_biases_and_scales(configure: Configure) -> None:
    zeros = jax.tree.map(jnp.zeros_like, in_float32(PARAMS))
    for name in ("sgd", "adamw", "lion", "rmsprop", "muon"):
        optimizer = make(configure, name=name, weight_decay=0.5, decay_biases=False)
        params = in_float32(PARAMS)
        updates, _ = optimizer.update(zeros, optimizer.init(params), params)
        moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
        assert (
            moved
            == select_decayed(params)
            == {"conv": {"bank": True, "bias": False}, "norm": {"scale": False}}
        )
    everything = make(configure, name="adamw", weight_decay=0.5)
    updates, _ = everything.update(zeros, everything.init(in_float32(PARAMS)), in_float32(PARAMS))
    assert all(bool(jnp.any(update != 0)) for update in jax.tree.leaves(updates))


def test_clipping_shortens_only_gradients_that_are_too_long(configure: Configure) -> None:
    params = in_float32(PARAMS)
    length = float(optax.tree.norm(params))
    for clip in (0.5, 2 * length):
        optimizer = make(configure, name="sgd", learning_rate=0.1, momentum=0.0, clip=clip)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        assert float(optax.tree.norm(updates)) == pytest.approx(0.1 * min(clip, length), rel=1e-5)


@pytest.mark.parametrize(
    ("optim", "rates"),
    [
        ({"schedule": "wsd"}, {0: 1, 16: 1, 18: 0.5, 20: 0}),
        (
            {"schedule": "wsd", "warmup": 0.5, "schedule_options": {"decay": 0.5}},
            {0: 0, 5: 0.5, 15: 1, 20: 0},
        ),
        ({"schedule": "linear_schedule"}, {0: 1, 10: 0.5, 20: 0}),
        (
            {"schedule": "exponential_decay", "schedule_options": {"decay_rate": 0.25}},
            {0: 1, 10: 0.5, 20: 0.25},
        ),
        (
            {
                "schedule": "piecewise_constant_schedule",
                "schedule_options": {"boundaries_and_scales": {"10": 0.1}},
            },
            {9: 1, 11: 0.1},
        ),
        ({"schedule": "warmup_cosine_decay_schedule", "warmup": 0.5}, {0: 0, 5: 0.5, 10: 1, 15: 0.5, 20: 0}),
        ({"schedule": "cosine", "warmup": 0.5}, {0: 0, 5: 0.5, 10: 1, 15: 0.5, 20: 0}),
    ],
    ids=lambda case: str(case.get("schedule", "")),
)
def test_schedules_span_the_run(optim: dict[str, Any], rates: dict[int, float]) -> None:
    schedule = make_relative_rate(Optim(**optim), STEPS)
    assert {step: float(jnp.asarray(schedule(step))) for step in rates} == pytest.approx(rates, abs=1e-6)


def test_runs_that_differ_in_numbers_of_options_have_one_program(configure: Configure) -> None:
    def shape(**options: Any) -> str:
        return make_program_key(configure(optim={"options": options}))

    assert shape(b2=0.9) == shape(b2=0.98)
    assert shape(b2=0.9) != shape(b2=0.9, eps=1e-6)
    assert shape(nesterov=True) != shape(nesterov=False)
    assert shape() != shape(b2=0.9)
    assert list_traced_options(Optim(options={"b2": 0.9, "nesterov": True})) == ("b2",)


@pytest.mark.slow
def test_runs_with_different_options_train_in_a_stack_as_each_alone(configure: Configure) -> None:
    optim = {"name": "adam", "clip": 0.5, "schedule": "wsd"}
    runs = [configure(optim={**optim, "options": {"b2": b2}}, train={"steps": 8}) for b2 in (0.5, 0.99)]
    images = load_once(runs[0].data)

    def train(configs: list[RunConfig]) -> list[float]:
        last = list(StackTrainer(configs[0], images, len(configs)).train(configs))[-1]
        return [row["test/loss"] for row in last.rows or []]

    losses = train(runs)
    assert abs(losses[0] - losses[1]) > 1e-4
    assert losses == pytest.approx([train([run])[0] for run in runs], abs=1e-5)


def test_options_change_the_run_id_and_their_defaults_do_not(configure: Configure) -> None:
    plain = configure()
    assert not {"options", "schedule_options", "clip", "decay_biases"} & set(plain.identity()["optim"])
    assert configure(optim={"options": {"b2": 0.9}}).run_id != plain.run_id


USER_CODE = """
import optax

def signs(learning_rate, weight_decay, strength: float = 1.0):
    return optax.chain(
        optax.scale_by_sign() if strength else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )

def signs_of(strength=1.0):
    return optax.chain(optax.scale_by_sign(), optax.scale(strength))

def halve(steps):
    return optax.linear_schedule(1.0, 0.5, steps)

def nothing(learning_rate):
    return None

def broken(learning_rate):
    raise ValueError("this\\nis broken")
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"user_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    return name


@pytest.mark.parametrize("suffix", ["", ".py"])
def test_optimisers_and_schedules_of_the_user_come_from_the_working_folder(
    configure: Configure, user_code: str, suffix: str
) -> None:
    optim = {"learning_rate": 0.1, "schedule": f"{user_code}{suffix}:halve"}
    expected = optax.chain(
        optax.scale_by_sign(), optax.scale_by_learning_rate(optax.linear_schedule(0.1, 0.05, STEPS))
    )
    named = make(configure, name=f"{user_code}{suffix}:signs", **optim)
    assert_equal(take_steps(named), take_steps(expected))
    transformation = make(configure, name=f"{user_code}{suffix}:signs_of", options={"strength": 1.0}, **optim)
    assert_equal(take_steps(transformation), take_steps(expected))


def test_options_on_which_the_optimiser_decides_in_python_are_static(user_code: str) -> None:
    assert list_traced_options(Optim(name=f"{user_code}:signs", options={"strength": 0.5})) == ()
    assert list_traced_options(Optim(name=f"{user_code}:signs_of", options={"strength": 0.5})) == (
        "strength",
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "must return a GradientTransformation of Optax \\(got NoneType\\)"),
        ("broken", "cannot be trained with \\(this\\)"),
        ("sign", "defines no sign; did you mean 'signs'"),
        ("optax", "must be a function \\(got module\\)"),
    ],
)
def test_user_code_that_is_no_optimiser_is_refused_in_a_line(user_code: str, name: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"optim.name={user_code}:{name}.*{message}"):
        check_optimizer(Optim(name=f"{user_code}:{name}"), STEPS)


def test_slots_are_those_of_the_state(user_code: str) -> None:
    slots = {name: count_slots(Optim(name=name)) for name in ("sgd", "adamw", "lion", "adam", "rmsprop")}
    assert slots == {"sgd": 1, "adamw": 2, "lion": 1, "adam": 2, "rmsprop": 1}
    assert count_slots(Optim(name=f"{user_code}:signs")) == 0
    assert count_slots(Optim(name="nomodule:signs"), loads_user_code=False) == 2
    assert count_slots(Optim(options={"mu_dtype": "bfloat16"})) == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize("name", sorted(IGNORES_AXES))
def test_an_optimizer_takes_the_same_steps_on_packed_banks(configure: Configure, name: str) -> None:
    params = {"bank": jnp.linspace(-1, 1, 20 * 3 * 3 * 8 * 4).reshape(20, 3, 3, 8, 4), "bias": jnp.ones(4)}
    optim = configure(optim={"name": name}).optim
    optimizer = make(configure, name=name)
    with compiling_for("tpu"):
        pack, unpack = make_packing(optim, params)
        assert pack(params)["bank"].shape == (20, 1, 1, 4, 72)  # which a TPU pads to a ninth
    packed, natural = (take_steps_from(optimizer, start) for start in (pack(params), params))
    for ours, expected in zip(jax.tree.leaves(unpack(packed)), jax.tree.leaves(natural), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("platform", "name"), [("cpu", "adam"), ("gpu", "adam"), ("tpu", "muon")])
def test_banks_are_packed_only_on_tpus_and_for_optimizers_that_ignore_axes(
    configure: Configure, platform: str, name: str
) -> None:
    params = {"bank": jnp.ones((20, 3, 3, 8, 4))}
    with compiling_for(platform):
        pack, _ = make_packing(configure(optim={"name": name}).optim, params)
        assert pack(params) is params
