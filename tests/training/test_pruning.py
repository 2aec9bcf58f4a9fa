"""Pruning with rewinding: what is pruned, what the others return to, and that pruned weights stay zero."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnnexp.config import RunConfig
from cnnexp.config.model import MLP
from cnnexp.core.errors import UsageError
from cnnexp.load import load_run
from cnnexp.models.spec import total_count
from cnnexp.store.checkpoints import StackCheckpoints, iterate_stacks, restore
from cnnexp.store.runs import read_runs
from cnnexp.sweep.program_key import make_program_key
from cnnexp.sweep.validate import check_run
from cnnexp.training.loop import LoopState, StackTrainer
from cnnexp.training.optimizers import Hyperparameters
from cnnexp.training.schedule import resolve_duration
from cnnexp.training.setup import PrunedState, State, UnprunedState, make_setup
from cnnexp.training.train import init, train_steps
from tests.conftest import Configure, load_once
from tests.training.test_train import select_data, train_stack

LAYERS, HEAD = ("conv_0", "dense_0"), "head"
MODEL = {"features": [3], "hidden": [5], "tying": "local"}
OPTIM = {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1, "clip": 1.0}


def configure_pruned(configure: Configure, **train: Any) -> RunConfig:
    pruning = {"steps": 4, "prune_rounds": 2, "prune_fraction": 0.5, "prune_rewind": 1} | train
    return configure(model=MODEL, optim=OPTIM, train=pruning)


def bank(state: Any, layer: str) -> np.ndarray:
    return np.asarray(state.params[layer]["bank"][...])


@pytest.mark.parametrize("by", ["magnitude", "random"])
def test_weights_are_pruned_and_the_others_rewound_with_their_optimiser(
    configure: Configure, by: str
) -> None:
    config = configure_pruned(configure, prune_by=by)
    setup, numbers = make_setup(config), Hyperparameters.from_config(config)
    images = select_data(config, load_once(config.data))

    @jax.jit
    def advance(state: State, data: Any, steps: int) -> State:
        return train_steps(state, data, numbers, setup, steps=steps)

    def train(state: State, steps: int) -> State:
        return advance(state, images, steps)

    start = init(jax.random.key(0), numbers, setup)
    rewind_point = train(start, 1)
    trained = train(train(rewind_point, 1), 2)
    rewound = train(trained, 0)  # only what is due before the first step
    for layer in LAYERS:
        size, magnitudes = bank(trained, layer).size, np.abs(bank(trained, layer))
        survives = bank(rewound, layer) != 0
        assert survives.sum() == size - round(size / 2)
        assert (magnitudes[survives].min() > magnitudes[~survives].max()) == (by == "magnitude")
        expected = np.where(survives, bank(rewind_point, layer), 0)
        np.testing.assert_array_equal(bank(rewound, layer), expected)
    np.testing.assert_array_equal(bank(rewound, HEAD), bank(rewind_point, HEAD))
    jax.tree.map(np.testing.assert_array_equal, rewound.opt_state, rewind_point.opt_state)
    assert int(rewound.step) == 4
    later = train(train(trained, 3), 3)  # pruned once more
    for layer in LAYERS:
        once, twice = bank(rewound, layer) != 0, bank(later, layer) != 0
        assert not twice[~once].any()
        assert twice.sum() == once.sum() - round(once.sum() / 2)


def test_pruned_weights_are_zero_at_every_evaluation_and_all_rounds_are_counted(configure: Configure) -> None:
    configs = [configure_pruned(configure, prune_fraction=fraction) for fraction in (0.25, 0.75)]
    assert len({make_program_key(config) for config in configs}) == 1  # one program for both fractions
    duration = resolve_duration(configs[0])
    assert (duration.steps, duration.round_steps, duration.prunes_after) == (10, 4, (4, 7))
    assert {0, 1, 4, 7, 10} <= set(duration.evaluate_after)
    rows = None
    for pause in StackTrainer(configs[0], load_once(configs[0].data)).train(configs):
        rows = pause.rows
        rounds = sum(pause.step > step for step in duration.prunes_after)
        size = bank(pause.state, LAYERS[0])[0].size
        for run, fraction in enumerate((0.25, 0.75)):
            expected = size * (1 - fraction) ** rounds
            assert np.count_nonzero(bank(pause.state, LAYERS[0])[run]) == pytest.approx(expected, abs=1)
    macs = 3 * 10 * duration.batch_size * total_count(make_setup(configs[0]).network, "macs")
    assert rows is not None and rows[0]["step"] == 10 and rows[0]["macs"] == macs


def test_a_pruned_run_resumes_from_a_checkpoint_to_the_same_numbers(
    configure: Configure, tmp_path: Path
) -> None:
    config = configure_pruned(configure, prune_by="random")
    trainer = StackTrainer(config, load_once(config.data))
    pauses: list[LoopState] = []
    for pause in trainer.train([config]):
        pauses.append(pause)
        if pause.step == 4:  # before the first pruning
            StackCheckpoints(tmp_path, [config.run_id]).save(pause.step, pause.state)
    ((folder, _),) = iterate_stacks(tmp_path)
    saved = restore(folder, trainer.make_state_template(1), on_corrupt=pytest.fail)
    assert saved is not None
    *_, end = trainer.train([config], saved.state)
    jax.tree.map(np.testing.assert_array_equal, end.state.params, pauses[-1].state.params)
    assert end.rows == pauses[-1].rows and end.state.pruning is not None
    assert UnprunedState._fields == PrunedState._fields[:-1]  # and others resume from older checkpoints


@pytest.mark.parametrize(
    ("layers", "pruned"), [("first", {"conv_0"}), ("all", {"conv_0", "dense_0", "head"})]
)
def test_only_the_chosen_layers_of_a_convolution_are_pruned(
    configure: Configure, layers: str, pruned: set[str]
) -> None:
    config = configure_pruned(configure, prune_layers=layers, prune_rounds=1)
    *_, end = train_stack([config])
    names = {layer for layer in ("conv_0", "dense_0", "head") if (bank(end.state, layer) == 0).any()}
    assert names == pruned
    assert jnp.isfinite(bank(end.state, "conv_0")).all()


def test_a_loaded_run_knows_its_masks(run: Any) -> None:
    words = ["model=mlp", "model.hidden=[6]", "train.prune_rounds=1", "train.prune_fraction=0.5"]
    mlp = [
        "data.images=100",
        "data.test_images=40",
        "data.train_size=50",
        "train.steps=3",
        "tracking.mode=disabled",
    ]
    assert run(*words, "name=pruned", base=mlp) == 0 and run("model=mlp", "name=dense", base=mlp) == 0
    (pruned,), (dense,) = (list(read_runs(Path("results") / name)) for name in ("pruned", "dense"))
    masks = load_run(pruned.folder).masks()
    assert set(masks) == {"dense_0.bank"} and masks["dense_0.bank"].mean() == 0.5
    assert load_run(dense.folder).masks() == {}
    assert pruned.summary["learned/zeros/dense_0"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        (
            "train",
            {"prune_fraction": None},
            "train.prune_rounds=2 train.prune_fraction=null: pruning needs both",
        ),
        ("train", {"prune_rewind": 4}, "train.prune_rewind=4: must be less than 4, the steps of a round"),
        ("train", {"keep": "best"}, "train.keep=best: must be last or none with train.prune_rounds"),
        ("train", {"share_every": 2}, "train.share_every=2: must be null with train.prune_rounds"),
        (
            "optim",
            {"l1": 0.1, "l1_threshold": 1.0},
            "train.prune_rounds=2: must be null with optim.l1_threshold",
        ),
    ],
)
def test_keys_that_contradict_pruning_are_refused(
    configure: Configure, section: str, changes: dict[str, Any], message: str
) -> None:
    sections = {
        "train": {"steps": 4, "prune_rounds": 2, "prune_fraction": 0.5},
        "data": {"validation_size": 10},
        "optim": {},
    }
    sections[section] = sections[section] | changes
    with pytest.raises(UsageError, match=message):
        check_run(configure(**sections))


def test_a_network_without_hidden_layers_has_nothing_to_prune(configure: Configure) -> None:
    head = configure_pruned(configure).model_copy(update={"model": MLP(hidden=[])})
    with pytest.raises(UsageError, match=r"train\.prune_layers=hidden: must be all or first"):
        check_run(head)
