"""Runs that one XLA program can train have one key, and the numbers that their own program would give."""

import pytest

from cnnexp.sweep.plan import group_by_program, split_group, stacks_for
from cnnexp.sweep.worker import TrainerCache
from cnnexp.training.loop import StackTrainer
from tests.conftest import Configure, load_once


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, {"tying": "local"}])
def test_runs_with_and_without_a_corruption_have_one_program_and_the_numbers_of_their_own(
    configure: Configure, model: dict[str, str]
) -> None:
    changes = (
        {},
        {"pixel_noise": 0.2},
        {"permutation": "fixed", "block": 2},
        {"permutation": "fixed"},
        {"label_noise": 0.5},
    )
    runs = {str(number): configure(model=model, data=change) for number, change in enumerate(changes)}
    ((program_key, group),) = group_by_program(runs).items()
    (stack,) = split_group(group, program_key, largest=5)
    assert stack.optional == ["pixel_noise", "permutation", "label_noise"]
    images = load_once(stack.config.data)
    configs = list(stack.runs.values())
    together = list(StackTrainer(stack.config, images, 5, stack.optional).train(configs))[-1].rows or []
    alone = [list(StackTrainer(run, images).train([run]))[-1].rows for run in configs]
    assert [[row] for row in together] == alone
    assert len({row["train/loss"] for row in together}) == 5
    assert len(group_by_program({"a": configure(), "b": configure(data={"permutation": "per_image"})})) == 2


def test_stacks_of_other_images_of_one_shape_have_one_program(configure: Configure) -> None:
    runs = {str(seed): configure(data={"seed": seed}) for seed in (0, 1)}
    first, second = stacks_for(runs)
    assert first.program_key == second.program_key
    trainers = TrainerCache()
    trainer = trainers.trainer_for(first)
    rows = [list(trainers.trainer_for(stack).train([stack.config]))[-1].rows for stack in (first, second)]
    assert trainers.trainer_for(second) is trainer
    assert (
        rows[1]
        == list(StackTrainer(second.config, load_once(second.config.data)).train([second.config]))[-1].rows
    )
    assert rows[0] != rows[1]
