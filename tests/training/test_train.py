"""One run as a pure function, and a stack as its vmap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnnexp.config import RunConfig
from cnnexp.data.images import Images
from cnnexp.data.loading import draw_run_split
from cnnexp.data.pipelines import InMemory
from cnnexp.data.sampling import ROUNDS, batch_indices, permute
from cnnexp.sweep.plan import shape_of_program
from cnnexp.training import stacking
from cnnexp.training.loop import LoopState, Row, StackTrainer
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.schedule import resolve_duration
from cnnexp.training.setup import State, apply_network, compute_losses, is_correct, make_setup
from cnnexp.training.train import evaluate, make_train
from tests.conftest import Configure
from tests.conftest import load_once as load


def run_data(config: RunConfig, images: Images) -> InMemory:
    order, validation = map(jnp.asarray, draw_run_split(images, config.data, config.seed))
    return InMemory(images, order, jnp.int32(resolve_duration(config).train_size), validation)


def moments(configs: list[RunConfig], state: State | None = None) -> list[LoopState]:
    images = jax.device_put(load(configs[0].data))
    return list(StackTrainer(configs[0], images).train(configs, state))


def histories(configs: list[RunConfig]) -> list[list[Row]]:
    return [moment.rows for moment in moments(configs) if moment.rows is not None]


def final_losses(configs: list[RunConfig]) -> list[float]:
    return [row["test/loss"] for row in histories(configs)[-1]]


@pytest.mark.parametrize("tying", ["shared", "local", "dense"])
def test_stack_equals_solo(configure: Configure, monkeypatch: pytest.MonkeyPatch, tying: str) -> None:
    configs = [configure(model={"tying": tying}, seed=seed) for seed in (0, 1, 2)]
    solo = [loss for config in configs for loss in final_losses([config])]
    assert len(set(solo)) == 3
    assert final_losses(configs) == pytest.approx(solo, abs=1e-5)
    # On a GPU the runs train side by side, not in turns.
    monkeypatch.setattr(stacking, "map_over_runs", jax.vmap)
    assert final_losses(configs) == pytest.approx(solo, abs=1e-5)


def test_same_seed_twice_is_bit_identical(configure: Configure) -> None:
    configs = [configure(seed=3), configure(seed=4)]
    assert histories(configs) == histories(configs)


def test_whole_run_as_one_function_equals_the_loop(configure: Configure) -> None:
    config = configure()
    images = jax.device_put(load(config.data))
    _, metrics = jax.jit(make_train(config))(jax.random.key(config.seed), run_data(config, images))
    rows = [rows[0] for rows in histories([config])]
    assert [row["step"] for row in rows] == [0, 2, 4, 5]
    assert np.asarray(metrics["test"].loss) == pytest.approx([row["test/loss"] for row in rows], abs=1e-5)
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


def test_seeds_are_a_vmap_of_the_whole_run(configure: Configure) -> None:
    config = configure()
    data = run_data(config, jax.device_put(load(config.data)))
    train, keys = jax.jit(make_train(config)), jax.random.split(jax.random.key(0), 2)
    _, both = jax.vmap(train, in_axes=(0, None))(keys, data)
    for key, loss in zip(keys, both["test"].loss, strict=True):
        assert np.asarray(train(key, data)[1]["test"].loss) == pytest.approx(np.asarray(loss), abs=1e-5)


@pytest.mark.parametrize("optim", [{"name": "sgd"}, {"name": "adamw"}, {"schedule": "cosine", "warmup": 0.4}])
def test_every_optimiser_learns(configure: Configure, optim: dict[str, Any]) -> None:
    config = configure(optim=optim, train={"steps": 40, "eval_every": 40.0})
    before, after = (rows[0] for rows in histories([config]))
    assert after["train/loss"] < 0.9 * before["train/loss"]


def test_warmup_starts_at_zero_and_weight_decay_shrinks(configure: Configure) -> None:
    images = jax.device_put(load(configure().data))

    def norm(**optim: Any) -> float:
        config = configure(optim=optim, train={"steps": 1, "eval_every": 1.0})
        state, _ = make_train(config)(jax.random.key(0), run_data(config, images))
        return float(sum(jnp.abs(leaf).sum() for leaf in jax.tree.leaves(state.params)))

    untouched = norm(warmup=0.9, learning_rate=0.1, schedule="cosine")
    assert norm(warmup=0.9, learning_rate=0.3, schedule="cosine") == pytest.approx(untouched)
    assert norm(weight_decay=5.0) < norm(weight_decay=0.0)


def test_evaluation_counts_every_image_once(configure: Configure) -> None:
    config = configure(data={"images": 1100, "train_size": 1100, "test_images": 700})
    images, setup = jax.device_put(load(config.data)), make_setup(config)
    data = run_data(config, images)
    train = make_train(configure(data=config.data.model_dump(), train={"steps": 1}))
    state, _ = train(jax.random.key(0), data)
    test = evaluate(state, data, Hyperparameters.from_config(config), setup)["test"]
    mean, std = images.normalisation
    normalised = (images.test_images.astype(jnp.float32) - mean) / std
    logits = apply_network(state.params, state.fixed, normalised, setup)
    labels = np.asarray(images.test_labels)
    assert test.accuracy == pytest.approx(float((np.asarray(logits).argmax(-1) == labels).mean()))
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels].mean()
    assert test.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("size", "batch"), [(12, 5), (12, 12), (7, 20), (1, 3)])
def test_batches_pass_over_the_images_without_loss_and_resume(size: int, batch: int) -> None:
    key = jax.random.key(0)

    def batches(first: int, steps: int) -> np.ndarray:
        return np.stack(
            [
                batch_indices(key, jnp.int32(step), batch_size=batch, train_size=jnp.int32(size))
                for step in range(first, first + steps)
            ]
        )

    everything = batches(0, 24)
    stream = everything.ravel()
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert (batches(7, 5) == everything[7:12]).all()
    if size > 2:
        assert list(stream[:size]) != list(stream[size : 2 * size])


@pytest.mark.parametrize("size", [2, 3, 7, 64, 100])
def test_orders_are_as_random_as_those_of_jax(size: int) -> None:
    epochs = 4000

    def orders(words: Any) -> np.ndarray:
        epoch, place = jnp.divmod(jnp.arange(epochs * size, dtype=jnp.uint32), size)
        return np.asarray(permute(words, epoch, place, jnp.uint32(size)), np.int64).reshape(epochs, size)

    found = orders(jax.random.bits(jax.random.key(2), (ROUNDS, 2)))
    assert (np.sort(found, axis=1) == np.arange(size)).all()
    counts = np.stack([np.bincount(column, minlength=size) for column in found.T])
    statistic = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-3  # each image is anywhere equally often
    if size > 2:
        steps = (found[:, 1:] - found[:, :-1]) % size
        assert stats.chisquare(np.bincount(steps.ravel(), minlength=size)[1:]).pvalue > 1e-3


def test_training_sizes_share_a_stack_and_give_what_they_give_alone(configure: Configure) -> None:
    configs = [configure(data={"train_size": size}) for size in (7, 30, 60)]
    assert len({shape_of_program(config) for config in configs}) == 1
    solo = [loss for config in configs for loss in final_losses([config])]
    assert final_losses(configs) == pytest.approx(solo, abs=1e-5)
    rows = histories(configs)[-1]
    assert [row["epoch"] for row in rows] == pytest.approx([100 / 7, 100 / 30, 100 / 60])


def test_validation_images_are_never_trained_on(configure: Configure) -> None:
    config = configure(data={"scatter": False, "train_size": None, "validation_size": 20})
    images = load(config.data)
    spoilt = images._replace(train_images=images.train_images.copy())
    held_out = draw_run_split(images, config.data, config.seed).validation
    spoilt.train_images[held_out] = 255 - images.train_images[held_out]
    true, wrong = (
        list(StackTrainer(config, data).train([config]))[-1].rows or [] for data in (images, spoilt)
    )
    assert true[0]["train/loss"] == wrong[0]["train/loss"] and true[0]["test/loss"] == wrong[0]["test/loss"]
    assert true[0]["validation/loss"] != wrong[0]["validation/loss"]


def test_label_smoothing_changes_what_is_trained_not_what_is_measured(configure: Configure) -> None:
    plain, smooth = histories([configure(), configure(train={"label_smoothing": 0.3})])[0]
    assert plain["train/loss"] == smooth["train/loss"]
    plain, smooth = histories([configure(), configure(train={"label_smoothing": 0.3})])[-1]
    assert plain["train/loss"] != smooth["train/loss"]
    logits, labels = jnp.array([[2.0, 0.0, 1.0]]), jnp.array([0])
    expected = -(0.8 * jax.nn.log_softmax(logits)[0, 0] + 0.2 * jax.nn.log_softmax(logits)[0].mean())
    assert compute_losses("softmax", logits, labels, 0.2)[0] == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"epochs": None, "steps": 10, "eval_every": 4.0}, (0, 4, 8, 10)),
        ({"epochs": 2.0, "steps": None, "eval_every": 1.0}, (0, 3, 6)),
        ({"epochs": 1.5, "steps": None, "eval_every": 1.0}, (0, 3, 4)),
        ({"epochs": 0.01, "steps": None, "eval_every": 1.0}, (0, 1)),
        ({"epochs": None, "steps": 20, "eval_every": "log"}, (0, *range(1, 11), 12, 14, 16, 18, 20)),
        ({"epochs": 4.0, "steps": None, "eval_every": "log"}, (0, *range(1, 11), 12)),
        ({"epochs": None, "steps": 1, "eval_every": "log"}, (0, 1)),
    ],
)
def test_durations(configure: Configure, train: dict[str, Any], expected: tuple[int, ...]) -> None:
    duration = resolve_duration(configure(train=train))  # 60 images in batches of 20
    assert duration.evaluate_after == expected
    assert duration.epochs(3) == 1


def test_heads_on_known_values() -> None:
    logits = jnp.array([[2.0, 0.0], [0.0, 2.0]])
    labels = jnp.array([0, 0])
    assert list(np.asarray(is_correct(logits, labels))) == [True, False]
    softmax = np.log(1 + np.exp([-2.0, 2.0]))
    assert compute_losses("softmax", logits, labels) == pytest.approx(softmax, rel=1e-5)
    sigmoid = [(np.log1p(np.exp(-2.0)) + np.log(2)) / 2, (np.log(2) + np.log1p(np.exp(2.0))) / 2]
    assert compute_losses("sigmoid", logits, labels) == pytest.approx(sigmoid, rel=1e-5)
    several = jnp.array([[1, 0], [1, 1]])
    assert list(np.asarray(is_correct(jnp.array([[2.0, -1.0], [2.0, -1.0]]), several))) == [True, False]
    assert compute_losses("sigmoid", logits, several).shape == (2,)
