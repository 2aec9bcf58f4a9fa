"""Networks of the user: found, checked, counted exactly, and trained as the project's own."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from cnnexp.config import RunConfig, parse
from cnnexp.core.errors import UsageError
from cnnexp.models.custom import build_network
from cnnexp.models.network import get_spatial_layers
from cnnexp.models.spec import specify_network, total_count
from cnnexp.nn.geometry import Geometry
from cnnexp.store.runs import read_runs
from cnnexp.training.loop import StackTrainer
from cnnexp.training.setup import merge_network
from tests.conftest import SMALL, SMALL_SWEEP, load_once

NETWORK = '''
import jax
from flax import nnx
from cnnexp import TiedConv


class Calls(nnx.Variable):
    """A variable of a kind that only this file knows."""


class Net(nnx.Module):
    def __init__(self, shape, classes, *, width, tying, rngs):
        h, w, c = shape
        self.stem = nnx.Conv(c, width, (3, 3), rngs=rngs)
        sizes = {"kernel_size": (3, 3), "in_size": (h, w)}
        self.blocks = nnx.List([TiedConv(width, width, **sizes, tying=tying, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.dropout = nnx.Dropout(0.25, rngs=rngs)
        self.head = nnx.Linear(width, classes, rngs=rngs)
        self.calls = Calls(jax.numpy.int32(0))

    def __call__(self, x):
        if not self.dropout.deterministic:
            self.calls[...] = self.calls[...] + 1
        x = jax.nn.relu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.dropout(jax.nn.relu(self.norm(x))).mean((1, 2)))


def make(shape, classes, *, rngs, width=4, tying="shared"):
    return Net(shape, classes, width=width, tying=tying, rngs=rngs)


def make_images(shape, classes, *, rngs):
    return lambda x: x


def make_wrong_logits(shape, classes, *, rngs):
    return Net(shape, classes + 1, width=2, tying="shared", rngs=rngs)


def make_too_small(shape, classes, *, rngs):
    return nnx.Linear(3, classes, rngs=rngs)


def make_demanding(shape, classes, *, rngs, depth):
    return nnx.Linear(3, classes, rngs=rngs)
'''


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with networks in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my_net.py"
    path.write_text(NETWORK)
    return path


def configure_custom(file: str, seed: int = 0, **model: Any) -> RunConfig:
    return parse({**SMALL, "seed": seed, "model": {"name": "custom", "file": file, **model}})


@pytest.mark.parametrize("tying", ["shared", "tiled(2)", "local"])
def test_tied_layers_and_all_others_are_counted_exactly(file: Path, tying: str) -> None:
    config = configure_custom("my_net.py", tying=tying)
    first, second, other = layers = specify_network(config)
    assert (first.name, second.name) == ("blocks_0", "blocks_1")
    geometry = Geometry(in_shape=(10, 10, 4), features=4, kernel_size=(3, 3))
    assert first.geometry == geometry and str(first.tying) == tying
    network = build_network(config, layers, rngs=nnx.Rngs(0))
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    assert total_count(layers, "params") == sum(leaf.size for leaf in leaves)
    assert other.params == 3 * 3 * 4 + 4 + 2 * 4 + 4 * 10 + 10  # the stem, the normalisation and the head
    assert other.counts.macs == 10 * 10 * 9 * 4 + 4 * 10  # padding counted, as the program computes it


@pytest.mark.slow
def test_a_stack_gives_what_runs_alone_give_and_resumes(file: Path) -> None:
    configs = [configure_custom("my_net.py", seed, tying="tiled(2)") for seed in (0, 1)]
    images = load_once(configs[0].data)
    trainer = StackTrainer(configs[0], images, 2)
    last = list(trainer.train(configs))[-1]
    rows = last.rows
    assert rows is not None
    network = merge_network(
        *(jax.tree.map(lambda leaf: leaf[1], tree) for tree in (last.state.params, last.state.variables)),
        trainer.setup,
    )
    assert int(network.calls[...]) == 5  # its own variable has counted the steps
    assert list(get_spatial_layers(network)) == ["blocks_0", "blocks_1"]
    trainer_of_one = StackTrainer(configs[0], images)
    alone = [list(trainer_of_one.train([config]))[-1].rows for config in configs]
    for row, (single,) in zip(rows, alone, strict=True):
        assert row["test/loss"] == pytest.approx(single["test/loss"], abs=1e-4)
    loop = trainer.train(configs)
    next(loop)
    saved = jax.tree.map(lambda leaf: leaf.copy(), next(loop).state)
    resumed = list(trainer.train(configs, saved))[-1]
    assert resumed.rows == rows


@pytest.mark.slow
def test_options_and_tyings_reach_the_network_and_the_store(file: Path, run: Any) -> None:
    base = [word for word in SMALL_SWEEP if not word.startswith("model.")]
    base += ["model=custom", "model.file=my_net.py:make", "name=mine"]
    for words in (
        ["model.options.width=2", "model.tying=local"],
        ["model.options.width=3", "model.tying=shared"],
    ):
        assert run(*words, base=base) == 0
    runs = read_runs(Path("results/mine"))
    assert {stored.config["model"]["tying"]: stored.summary["params/blocks_0"] for stored in runs} == {
        "local": 16 * 16 * 9 * 2 * 2 + 2,
        "shared": 9 * 3 * 3 + 3,
    }
    assert all("params/other" in stored.summary for stored in runs)
    assert np.isfinite([stored.summary["test/accuracy"] for stored in runs]).all()


def test_a_changed_file_is_another_run_and_a_moved_one_is_not(file: Path, tmp_path: Path) -> None:
    first = configure_custom("my_net.py").run_id
    for name, text in (("moved.py", NETWORK), ("changed.py", NETWORK + "\n\nX = 1\n")):
        (tmp_path / name).write_text(text)
    assert configure_custom(str(tmp_path / "moved.py")).run_id == first
    assert configure_custom("changed.py").run_id != first
    assert configure_custom("my_net.py", options={"width": 5}).run_id != first


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"file": "no.py"}, r"model.file=no.py:make: there is no file .*no.py"),
        ({"file": "my_net.py:mak"}, "my_net.py defines no mak; did you mean 'make'"),
        (
            {"file": "failing.py"},
            r"failing.py:make: failing.py cannot be imported \(line 3: ZeroDivisionError: division",
        ),
        ({"target": "no_module:make"}, "model.target=no_module:make: there is no module no_module in"),
        ({"target": "no_name"}, "model.target=no_name: no such network"),
        ({"options": {"widht": 2}}, "model.options.widht: no such option of make; did you mean 'width'"),
        ({"options": {"rngs": 2}}, "model.options.rngs: no such option"),
        ({"file": "my_net.py:make_demanding"}, "make_demanding needs a value for depth"),
        ({"file": "my_net.py:make_images"}, "must return a flax.nnx.Module"),
        ({"file": "my_net.py:make_wrong_logits"}, r"must give logits of shape \(2, 10\) \(got \(2, 11\)\)"),
        ({"file": "my_net.py:make_too_small"}, "the network fails on 10x10x1 images"),
        ({"file": None}, "model.target=null model.file=null: .* set either of them"),
    ],
)
def test_what_cannot_be_a_network_is_refused_in_one_line(
    file: Path, tmp_path: Path, model: dict[str, Any], message: str
) -> None:
    (tmp_path / "failing.py").write_text("\nx = 1\ny = x / 0\n")
    if "target" in model:
        model = {"file": None} | model
    with pytest.raises(UsageError, match=message) as error:
        specify_network(parse({**SMALL, "model": {"name": "custom", "file": "my_net.py"} | model}))
    assert "\n" not in str(error.value)


def test_a_custom_network_cannot_begin_as_a_convolution(file: Path) -> None:
    train = {"steps": 5, "tied_steps": 2}
    config = parse({**SMALL, "train": train, "model": {"name": "custom", "file": "my_net.py"}})
    with pytest.raises(UsageError, match=r"train.tied_steps=2: a custom network has no convolution"):
        specify_network(config)
