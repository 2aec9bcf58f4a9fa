"""Probes of a trained network have their known values, of each run of a stack and of user functions."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnexp.core.errors import UsageError
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training.loop import StackTrainer
from cnnexp.training.probes import (
    deform_image,
    probe_shift_consistency,
    probe_stability,
    resolve_probes,
)
from tests.conftest import Configure, load_once

IMAGES = jax.random.normal(jax.random.key(0), (40, 16, 12, 2))
KEY = jax.random.key(1)
BOTH = ["shift_consistency", "stability"]


def project(images: jax.Array, seed: int = 3) -> jax.Array:
    """Compute random linear features of images."""
    flat = images.reshape(len(images), -1)
    return flat @ jax.random.normal(jax.random.key(seed), (flat.shape[1], 8))


def test_circular_shifts_leave_means_unchanged_and_random_features_change() -> None:
    shift = jax.jit(partial(probe_shift_consistency, head="softmax"), static_argnums=0)
    consistent = shift(lambda x: x.mean((1, 2)), IMAGES, KEY)
    assert consistent["circular"] == 1 and 0.5 < consistent["border"] < 1
    assert all(0.1 < value < 0.6 for value in shift(project, IMAGES, KEY).values())  # by chance 1/8 or more
    several = probe_shift_consistency(project, IMAGES, KEY, head="sigmoid")
    assert several["circular"] < shift(project, IMAGES, KEY)["circular"]


def test_shifts_reach_an_eighth_of_the_side_and_repeat_the_edge() -> None:
    row = jnp.broadcast_to(jnp.arange(16.0)[:, None, None], (16, 12, 1))
    seen: list[np.ndarray] = []

    def network(images: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), images)
        return images.mean((1, 2))

    probe_shift_consistency(network, jnp.stack([row] * 200), KEY, head="softmax")
    jax.effects_barrier()
    first_rows = {int(value) for images in seen for value in images[:, 0, 0, 0]}
    assert first_rows == {0, 1, 2, 14, 15}  # 2 pixels up and down: 14 and 15 come back, 0 is repeated


def test_deformations_are_smooth_zero_at_the_edges_and_have_the_given_size() -> None:
    height, width = 32, 24
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1) * 1.0
    deform = jax.jit(jax.vmap(partial(deform_image, displacement=0.5), (None, 0)))
    moves = np.asarray(deform(grid, jax.random.split(KEY, 400)) - grid)
    inner = moves[:, 2:-2, 2:-2]  # at the edges, the coordinates of the image end
    assert np.sqrt((inner**2).sum(-1).mean() * inner[0, ..., 0].size / (height * width)) == pytest.approx(
        0.5, rel=0.06
    )
    assert abs(moves[:, 0]).mean() < 0.1 < abs(moves[:, height // 2]).mean()
    assert abs(np.diff(inner, axis=1)).mean() < 0.15 * abs(inner).mean()


def test_stability_is_one_for_random_features_of_noise_and_small_for_smooth_features() -> None:
    measure = jax.jit(probe_stability, static_argnums=0)
    random = measure(project, IMAGES, KEY)
    assert random["ratio"] == pytest.approx(random["deformation"] / random["noise"])
    assert random["ratio"] == pytest.approx(1, abs=0.3)
    smooth = measure(lambda x: x.mean((1, 2)), IMAGES, KEY)
    assert smooth["ratio"] < 0.7  # a mean hardly changes if pixels move
    scaled = measure(lambda x: 7 * project(x) + 3, IMAGES, KEY)
    assert all(scaled[name] == pytest.approx(float(random[name]), rel=1e-3) for name in random)


@pytest.mark.slow
def test_each_run_of_a_stack_is_probed_as_alone_trained_and_initial(configure: Configure) -> None:
    configs = [configure(train={"probes": BOTH}, seed=seed) for seed in (0, 1)]
    trainer = StackTrainer(configs[0], load_once(configs[0].data), 2)
    *before, end = trainer.train(configs)
    (alone,) = (list(trainer.train([config]))[-1].probes for config in configs[1:])
    assert all(pause.probes is None for pause in before) and end.probes is not None and alone is not None
    measures = ["shift_consistency/border", "shift_consistency/circular"]
    measures += [f"stability/{name}" for name in ("deformation", "noise", "ratio")]
    names = {f"{prefix}/{name}" for prefix in ("learned", "initial") for name in measures}
    assert set(end.probes[0]) == names
    assert end.probes[1] == pytest.approx(alone[0], rel=1e-3)
    assert end.probes[0] != pytest.approx(end.probes[1], rel=1e-3)
    changed = [
        name for name in measures if end.probes[0][f"learned/{name}"] != end.probes[0][f"initial/{name}"]
    ]
    assert changed


def test_without_probes_nothing_changes(configure: Configure) -> None:
    usual, probed = configure(), configure(train={"probes": BOTH})
    assert "probes" not in usual.identity()["train"] and usual.run_id != probed.run_id
    assert make_program_key(usual) != make_program_key(probed)
    (end,) = [list(StackTrainer(usual, load_once(usual.data)).train([usual]))[-1]]
    assert end.probes is None


def test_a_function_of_the_user_is_a_probe(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "import jax.numpy as jnp\n"
        "def size(network, images, key):\n    return jnp.abs(network(images)).mean()\n"
        "def wrong(network, images, key):\n    return network(images)\n",
        encoding="utf-8",
    )
    config = configure(train={"probes": ["mine.py:size"], "steps": 1, "eval_every": 1.0})
    (end,) = [list(StackTrainer(config, load_once(config.data)).train([config]))[-1]]
    assert end.probes is not None and set(end.probes[0]) == {"learned/size", "initial/size"}
    for probes, message in (
        (["mine.py:wrong"], "must return a number, or numbers by names"),
        (["mine.py:missing"], "missing"),
        (["stabilty"], "did you mean 'stability'"),
        (["stability", "stability"], "listed twice"),
    ):
        with pytest.raises(UsageError, match=message):
            resolve_probes(configure(train={"probes": probes}))
