"""Metrics beside accuracy equal those of scikit-learn, in batches too, and the user's own are measured."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from cnnexp.config.sections import Train
from cnnexp.core.errors import UsageError
from cnnexp.data.arrays import ArrayRecords
from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.training.loop import LoopState, Row, StackTrainer
from cnnexp.training.metrics import (
    LEVELS,
    average_precision,
    count_scores,
    label_accuracy,
    resolve_loss,
    resolve_metrics,
    top5,
)
from cnnexp.training.setup import make_setup
from tests.conftest import Configure, load_once

SEVERAL: dict[str, Any] = {"model": {"head": "sigmoid"}, "data": {"digits": 3}}


def draw(images: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits and several labels of images; the labels follow from the logits and noise."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes)).astype(np.float32) * 3
    return logits, (logits + random.normal(size=logits.shape) * 4 > 2).astype(np.int32)


def measure_precision(logits: np.ndarray, labels: np.ndarray, valid: np.ndarray | None = None) -> float:
    valid = np.ones(len(logits), bool) if valid is None else valid
    counts = count_scores(jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(valid), "sigmoid")
    return float(average_precision(counts, valid.sum()))


def test_average_precision_is_that_of_scikit_learn() -> None:
    logits, labels = draw(500, 6)
    exact = average_precision_score(labels, logits, average="macro")
    assert measure_precision(logits, labels) == pytest.approx(exact, abs=2e-3)
    levels = np.floor((logits / (1 + np.abs(logits)) + 1) / 2 * LEVELS)
    rounded = average_precision_score(labels, levels, average="macro")
    assert measure_precision(logits, labels) == pytest.approx(rounded, abs=1e-5)


def test_average_precision_leaves_out_classes_without_images_and_images_that_do_not_count() -> None:
    logits, labels = draw(60, 4)
    labels[:, 2] = 0
    valid = np.arange(60) < 40
    exact = average_precision_score(labels[:40][:, [0, 1, 3]], logits[:40][:, [0, 1, 3]], average="macro")
    assert measure_precision(logits, labels, valid) == pytest.approx(exact, abs=5e-3)


def test_average_precision_of_certain_answers_is_1_and_of_ties_is_the_frequency() -> None:
    _, labels = draw(50, 3)
    assert measure_precision(np.where(labels, 40.0, -40.0), labels) == pytest.approx(1)
    assert measure_precision(np.zeros((50, 3)), labels) == pytest.approx(labels.mean(0).mean())
    assert measure_precision(np.full((50, 3), np.inf), labels) == pytest.approx(labels.mean(0).mean())


def test_accuracies_of_labels_and_of_five_guesses() -> None:
    logits = jnp.array([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])
    several = jnp.array([[1, 0, 0, 0], [1, 1, 0, 0]])
    assert np.asarray(label_accuracy(logits, several)).tolist() == [0.75, 1.0]
    assert np.asarray(label_accuracy(logits, jnp.array([0, 1]))).tolist() == [0.75, 0.75]
    descending = -jnp.arange(8.0)[None].repeat(8, 0)
    assert np.asarray(top5(descending, jnp.arange(8))).tolist() == [True] * 5 + [False] * 3


def open_files(images: Images) -> ImageFiles:
    """Images in memory as if they were streamed from disk."""
    return ImageFiles(
        records={
            split: ArrayRecords(array=np.asarray(pixels), labels=np.asarray(labels), name=split)
            for split, pixels, labels in (
                ("train", images.train_images, images.train_labels),
                ("test", images.test_images, images.test_labels),
            )
        },
        train_labels=np.asarray(images.train_labels),
        test_labels=np.asarray(images.test_labels),
        normalisation=images.normalisation,
    )


def train_stack(configs: list[Any], *, streams: bool = False) -> LoopState:
    images: Any = load_once(configs[0].data)
    images = open_files(images) if streams else images
    return list(StackTrainer(configs[0], images).train(configs))[-1]


def train_rows(configs: list[Any]) -> list[Row]:
    return train_stack(configs).rows or []


def test_images_with_several_labels_have_their_metrics_by_default(configure: Configure) -> None:
    assert list(resolve_metrics(configure(**SEVERAL))) == ["label_accuracy", "average_precision"]
    (row,) = train_rows([configure(**SEVERAL, train={"steps": 20, "eval_every": 20.0})])
    for name in ("label_accuracy", "average_precision"):
        assert 0.2 < row[f"test/{name}"] <= 1
        assert row[f"test/{name}"] > row["test/accuracy"]
        assert row[f"gap/{name}"] == pytest.approx(row[f"train/{name}"] - row[f"test/{name}"])


USER_CODE = """
import jax
import jax.numpy as jnp
import optax
from cnnexp.training.metrics import Metric

def confidence(logits, labels):
    return jax.nn.softmax(logits).max(-1)

def hinge(logits, labels):
    return optax.multiclass_hinge_loss(logits, labels)

def smoothed(logits, labels, label_smoothing):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets)

def mean(logits, labels):
    return logits.mean()

def unknown(logits, labels):
    return logits.undefined

def add(logits, labels, valid):
    return jnp.where(valid, labels, 0).sum()

mean_label = Metric(add, lambda total, count: total / count)
number = 3
"""


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user in the working folder."""
    monkeypatch.chdir(tmp_path)
    name = f"user_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    return name


@pytest.mark.slow
def test_metrics_and_loss_of_the_user_are_measured_in_memory_and_streamed(
    configure: Configure, user_code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cnnexp.training.evaluation.EVALUATION_BATCH_ON_CPU", 16)  # four batches
    monkeypatch.setattr("cnnexp.training.batches.WINDOW_BYTES", 3000)  # each in a window of its own
    names = ["confidence", "mean_label"]
    train = {
        "loss": f"{user_code}:smoothed",
        "metrics": [*(f"{user_code}:{name}" for name in names), "average_precision"],
        "label_smoothing": 0.1,
        "steps": 8,
        "eval_every": 8.0,
    }
    runs = [configure(train=train, seed=seed) for seed in (0, 1)]
    plain = configure(train={**train, "loss": None, "metrics": []})
    (expected,), memory, stream = train_rows([plain]), train_stack(runs), train_stack(runs, streams=True)
    rows, streamed = memory.rows or [], stream.rows or []
    assert expected["test/loss"] == pytest.approx(rows[0]["test/loss"], rel=1e-5)
    assert 0.1 <= rows[0]["test/confidence"] <= 1
    assert rows[0]["train/average_precision"] > 0.1
    for row, other in zip(rows, streamed, strict=True):
        assert other == pytest.approx(row, rel=1e-4)
    assert memory.hits is not None and stream.hits is not None
    assert memory.hits.mean(1) == pytest.approx([row["test/accuracy"] for row in rows], abs=1e-6)
    np.testing.assert_array_equal(memory.hits, stream.hits)


def test_further_metrics_change_no_other_number(configure: Configure) -> None:
    train = {"steps": 4, "eval_every": 4.0}
    (plain,) = train_rows([configure(train=train)])
    (measured,) = train_rows([configure(train={**train, "metrics": ["average_precision", "top5"]})])
    assert {key: measured[key] for key in plain} == plain
    assert measured.keys() - plain.keys() == {
        f"{split}/{name}" for split in ("train", "test", "gap") for name in ("average_precision", "top5")
    }


def test_a_trained_network_needs_no_code_of_the_user(configure: Configure) -> None:
    setup = make_setup(configure(train={"loss": "nowhere:f", "metrics": ["nowhere:g"]}))
    for attribute in ("loss", "metrics"):
        with pytest.raises(UsageError, match="there is no module nowhere"):
            getattr(setup, attribute)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": ["acuracy"]}, "acuracy: did you mean 'label_accuracy'"),
        ({"metrics": ["accuracy"]}, "accuracy is measured in any case"),
        ({"metrics": ["top5", "top5"]}, "top5 is listed twice"),
        ({"metrics": ["label_accuracy"]}, "label_accuracy needs model.head=sigmoid"),
        ({"metrics": ["USER:mean"]}, "must return one number per image .got an array of the shape \\(\\)"),
        ({"metrics": ["USER:unknown"]}, "cannot be computed .*undefined"),
        ({"metrics": ["USER:number"]}, "must be a function or a Metric .got int"),
        ({"loss": "USER:mean"}, "must return one number per image"),
        (
            {"loss": "USER:hinge", "label_smoothing": 0.1},
            "must be 0, as .*hinge has no argument label_smoothing",
        ),
        ({"loss": "hinge"}, "hinge: must be MODULE:FUNCTION or FILE.py:FUNCTION"),
    ],
)
def test_metrics_and_losses_that_mean_nothing_are_refused_in_a_line(
    configure: Configure, user_code: str, changes: dict[str, Any], message: str
) -> None:
    def named(value: Any) -> Any:
        return value.replace("USER", user_code) if isinstance(value, str) else value

    train = {
        key: list(map(named, value)) if isinstance(value, list) else named(value)
        for key, value in changes.items()
    }
    config = configure(train=train)
    resolve = resolve_loss if "loss" in changes else resolve_metrics
    with pytest.raises(UsageError, match=f"train.*{message}"):
        resolve(config)


def test_several_labels_have_no_five_guesses(configure: Configure) -> None:
    with pytest.raises(UsageError, match="top5 needs one label per image"):
        resolve_metrics(configure(**SEVERAL, train={"metrics": ["top5"]}))


def test_defaults_are_no_part_of_the_run_id(configure: Configure) -> None:
    identity = configure().identity()["train"]
    assert not {"loss", "metrics", "code"} & set(identity)
    assert Train.model_fields["metrics"].default == []
    assert configure(train={"metrics": ["top5"]}).run_id != configure().run_id
