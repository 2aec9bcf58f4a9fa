"""A run is a pure function, and a stack trains its runs as each trains alone."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from cnnexp.config import RunConfig
from cnnexp.core.platforms import compiling_for
from cnnexp.data.images import Images
from cnnexp.data.loading import draw_run_split
from cnnexp.data.pipelines import InMemory
from cnnexp.data.sampling import ROUNDS, batch_indices, draw_order, permute
from cnnexp.sweep.program_key import make_program_key
from cnnexp.training import optimizers
from cnnexp.training.evaluation import evaluate, evaluation_batch_size
from cnnexp.training.loop import LoopState, Row, StackTrainer
from cnnexp.training.metrics import Metrics, compute_losses, is_correct
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.schedule import resolve_duration
from cnnexp.training.setup import State, apply_network, make_setup
from cnnexp.training.train import init, make_train, train_steps
from tests.conftest import Configure, load_once


def select_data(config: RunConfig, images: Images) -> InMemory:
    order, validation = map(jnp.asarray, draw_run_split(images, config.data, config.seed))
    return InMemory(images, order, jnp.int32(resolve_duration(config).train_size), validation)


def train_stack(configs: list[RunConfig]) -> list[LoopState]:
    """All pauses of the training of a stack."""
    return list(StackTrainer(configs[0], load_once(configs[0].data)).train(configs))


def stack_rows(configs: list[RunConfig]) -> list[list[Row]]:
    """For each evaluation of a stack the rows of its runs."""
    return [pause.rows for pause in train_stack(configs) if pause.rows is not None]


def final_losses(configs: list[RunConfig]) -> list[float]:
    return [row["test/loss"] for row in stack_rows(configs)[-1]]


def final_losses_alone(configs: list[RunConfig]) -> list[float]:
    """The final loss of each of some runs with one program, trained one after the other."""
    trainer = StackTrainer(configs[0], load_once(configs[0].data))
    ends = [list(trainer.train([config]))[-1].rows or [] for config in configs]
    return [rows[0]["test/loss"] for rows in ends]


@pytest.mark.parametrize("tying", ["shared", "local", "dense"])
@pytest.mark.slow
def test_runs_of_a_stack_end_with_the_losses_of_each_alone(configure: Configure, tying: str) -> None:
    configs = [configure(model={"tying": tying}, seed=seed) for seed in (0, 1, 2)]
    alone = final_losses_alone(configs)
    assert len(set(alone)) == 3
    assert final_losses(configs) == pytest.approx(alone, abs=1e-5)


def test_same_seed_twice_is_bit_identical(configure: Configure) -> None:
    configs = [configure(seed=3), configure(seed=4)]
    assert stack_rows(configs) == stack_rows(configs)


@pytest.mark.slow
def test_a_run_is_one_function_with_the_metrics_of_the_loop_and_vmap_maps_it_over_keys(
    configure: Configure,
) -> None:
    config = configure(train={"steps": 3})
    data = select_data(config, load_once(config.data))
    train, keys = make_train(config), jax.vmap(jax.random.key)(jnp.arange(config.seed, config.seed + 2))
    alone = jax.jit(train)(keys[0], data)[1]["test"].loss
    mapped = jax.jit(jax.vmap(train, in_axes=(0, None)))(keys, data)[1]["test"].loss
    rows = [rows[0] for rows in stack_rows([config])]
    assert [row["step"] for row in rows] == [0, 2, 3]
    assert np.asarray(alone) == pytest.approx([row["test/loss"] for row in rows], abs=1e-5)
    assert np.asarray(mapped[0]) == pytest.approx(np.asarray(alone), abs=1e-5)
    assert mapped[1, -1] != mapped[0, -1]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]


@pytest.mark.parametrize("optim", [{"name": "sgd"}, {"name": "adamw"}, {"schedule": "cosine", "warmup": 0.4}])
def test_every_optimiser_learns(configure: Configure, optim: dict[str, Any]) -> None:
    config = configure(optim=optim, train={"steps": 40, "eval_every": 40.0})
    before, after = (rows[0] for rows in stack_rows([config]))
    assert after["train/loss"] < 0.9 * before["train/loss"]


def test_warmup_starts_at_zero_and_weight_decay_shrinks(configure: Configure) -> None:
    images = load_once(configure().data)

    def weights_after_a_step(**optim: Any) -> float:
        config = configure(optim=optim, train={"steps": 1, "eval_every": 1.0})
        setup, numbers = make_setup(config), Hyperparameters.from_config(config)

        @jax.jit
        def train(data: InMemory, numbers: Hyperparameters) -> State:
            return train_steps(init(jax.random.key(0), numbers, setup), data, numbers, setup, steps=1)

        state = train(select_data(config, images), numbers)
        return float(sum(np.abs(leaf).sum() for leaf in jax.tree.leaves(state.params)))

    untrained = weights_after_a_step(warmup=0.9, learning_rate=0.1, schedule="cosine")
    assert weights_after_a_step(warmup=0.9, learning_rate=0.3, schedule="cosine") == pytest.approx(untrained)
    assert weights_after_a_step(weight_decay=5.0) < weights_after_a_step(weight_decay=0.0)


def test_a_run_with_packed_banks_ends_with_the_weights_of_one_without(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(model={"tying": "local", "features": [8, 4]}, optim={"name": "adamw", "clip": 0.1})
    setup, numbers = make_setup(config), Hyperparameters.from_config(config)
    data = select_data(config, load_once(config.data))

    def train() -> list[np.ndarray]:
        def run(data: InMemory) -> Any:
            with compiling_for("tpu"):
                state = init(jax.random.key(0), numbers, setup)
                shapes = [leaf.shape for leaf in jax.tree.leaves(state.params)]
                pack, _ = optimizers.make_packing(config.optim, state.params)
                is_packed.append([leaf.shape for leaf in jax.tree.leaves(pack(state.params))] != shapes)
                return train_steps(state, data, numbers, setup, steps=3).params

        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(run)(data))]

    is_packed: list[bool] = []
    packed = train()
    monkeypatch.setattr(optimizers, "IGNORES_AXES", ())
    for ours, expected in zip(packed, train(), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert is_packed == [True, False]


def test_evaluation_counts_every_image_once(configure: Configure) -> None:
    config = configure(data={"images": 130, "train_size": 130, "test_images": 300})
    images, setup = load_once(config.data), make_setup(config)
    size = evaluation_batch_size(jax.default_backend())
    assert 2 * size < len(images.test_images) < 3 * size
    numbers = Hyperparameters.from_config(config)

    @jax.jit
    def evaluate_both_ways(data: InMemory) -> tuple[Metrics, jax.Array]:
        state = init(jax.random.key(0), numbers, setup)
        mean, std = data.images.normalisation
        normalised = (data.images.test_images.astype(jnp.float32) - mean) / std
        logits = apply_network(state.params, state.variables, normalised, setup)
        return evaluate(state, data, numbers, setup)["test"], logits

    test, logits = evaluate_both_ways(select_data(config, images))
    labels = np.asarray(images.test_labels)
    assert test.accuracy == pytest.approx(float((np.asarray(logits).argmax(-1) == labels).mean()))
    expected = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels].mean()
    assert test.loss == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("size", "batch"), [(12, 5), (12, 12), (7, 20), (1, 3)])
def test_every_epoch_has_each_image_once_and_batches_depend_on_their_step_alone(
    size: int, batch: int
) -> None:
    key = jax.random.key(0)

    @jax.jit
    def draw_batches(steps: jax.Array) -> jax.Array:
        def draw(step: jax.Array) -> jax.Array:
            return batch_indices(draw_order(key), step, batch_size=batch, train_size=jnp.int32(size))

        return jax.vmap(draw)(steps)

    everything, resumed = (np.asarray(draw_batches(jnp.arange(first, first + 24))) for first in (0, 7))
    stream = everything.ravel()
    for epoch in range(len(stream) // size):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))
    assert (resumed[:17] == everything[7:]).all()
    if size > 2:
        assert list(stream[:size]) != list(stream[size : 2 * size])


@pytest.mark.parametrize("size", [2, 3, 7, 64, 100])
def test_orders_are_uniformly_random(size: int) -> None:
    epochs = 4000

    def orders(words: Any) -> np.ndarray:
        epoch, index = jnp.divmod(jnp.arange(epochs * size, dtype=jnp.uint32), size)
        drawn = jax.jit(permute)(words, epoch, index, jnp.uint32(size))
        return np.asarray(drawn, np.int64).reshape(epochs, size)

    drawn = orders(jax.random.bits(jax.random.key(2), (ROUNDS, 2)))
    assert (np.sort(drawn, axis=1) == np.arange(size)).all()
    counts = np.stack([np.bincount(column, minlength=size) for column in drawn.T])
    statistic = ((counts - epochs / size) ** 2 / (epochs / size)).sum()
    assert stats.chi2.sf(statistic, (size - 1) ** 2) > 1e-3  # each image is anywhere equally often
    if size > 2:
        steps = (drawn[:, 1:] - drawn[:, :-1]) % size
        assert stats.chisquare(np.bincount(steps.ravel(), minlength=size)[1:]).pvalue > 1e-3


def test_runs_of_different_training_sizes_train_in_one_stack_as_alone(configure: Configure) -> None:
    configs = [configure(data={"train_size": size}) for size in (7, 30, 60)]
    assert len({make_program_key(config) for config in configs}) == 1
    rows = stack_rows(configs)[-1]
    assert [row["test/loss"] for row in rows] == pytest.approx(final_losses_alone(configs), abs=1e-5)
    assert [row["epoch"] for row in rows] == pytest.approx([100 / 7, 100 / 30, 100 / 60])


def test_validation_images_are_never_trained_on(configure: Configure) -> None:
    config = configure(data={"scatter": False, "train_size": None, "validation_size": 20})
    images = load_once(config.data)
    changed = images._replace(train_images=images.train_images.copy())
    held_out = draw_run_split(images, config.data, config.seed).validation
    changed.train_images[held_out] = 255 - images.train_images[held_out]
    before, after = (
        list(StackTrainer(config, data).train([config]))[-1].rows or [] for data in (images, changed)
    )
    assert before[0]["train/loss"] == after[0]["train/loss"]
    assert before[0]["test/loss"] == after[0]["test/loss"]
    assert before[0]["validation/loss"] != after[0]["validation/loss"]


def test_label_smoothing_changes_the_training_and_not_the_metrics(configure: Configure) -> None:
    start, *_, end = stack_rows([configure(), configure(train={"label_smoothing": 0.3})])
    plain, smooth = start
    assert plain["train/loss"] == smooth["train/loss"]
    plain, smooth = end
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
        ({"epochs": None, "steps": 1, "eval_every": "log(2)"}, (0, 1)),
        ({"epochs": None, "steps": 32, "eval_every": "log(1)"}, (0, 1, 2, 4, 8, 16, 32)),
        ({"epochs": None, "steps": 40, "eval_every": "log(2)"}, (0, 1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 40)),
    ],
)
def test_runs_are_evaluated_after_the_configured_steps(
    configure: Configure, train: dict[str, Any], expected: tuple[int, ...]
) -> None:
    duration = resolve_duration(configure(train=train))  # 60 images in batches of 20
    assert duration.evaluate_after == expected
    assert duration.epochs(3) == 1


def test_losses_and_answers_of_both_heads_on_known_values() -> None:
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
