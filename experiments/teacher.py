"""Does the best student have the tying of its teacher?

    cnnexp run experiment=teacher && cnnexp report teacher

Zhou 2021 makes data with random layers whose positions mix 1, 2 or 5 kernels, and finds that a convolution
learns only the first of these well. Here, teachers of four tyings, from a convolution to a locally connected
network, label Gaussian signals, and students of the same four tyings and shapes are trained on these labels.
A student can compute its teacher's function if it is at least as free; if it is freer, it needs more images.
"""

from itertools import pairwise

import numpy as np
import pandas as pd

from cnnexp.analysis.cells import Cell, cell_at, note_rows, values_of
from cnnexp.analysis.claims import make_claims, more_than
from cnnexp.analysis.estimates import difference
from cnnexp.analysis.measures import Measure, measure, measure_fraction
from cnnexp.plots.panels import count_best, draw_best
from cnnexp.report.experiments import Experiment

ZHOU = "Zhou 2021 (2007.02933), section 5.1"
TYINGS = {
    "shared": "convolution",
    "low_rank(2)": "network of rank 2",
    "low_rank(5)": "network of rank 5",
    "local": "locally connected network",
}
ORDER = list(TYINGS)
SIZES = (512, 4096)
MARGIN = 0.01


def student(teacher: str, tying: str) -> Cell:
    """Return a student of a tying on the labels of a teacher."""
    return {"data.name": "teacher", "data.tying": teacher, "model.tying": tying}


def claim_lead(teacher: str, other: str) -> tuple[str, Measure]:
    """Claim that the student with the tying of its teacher is ahead of another, with the most images."""
    cells = [cell_at("data.train_size", -1, student(teacher, tying)) for tying in (teacher, other)]
    names = TYINGS[teacher], TYINGS[other]
    sentence = f"On labels of a {names[0]}, a {names[0]} is more accurate than a {names[1]}."
    is_freer = ORDER.index(other) > ORDER.index(teacher)
    return sentence, measure(
        f"test accuracy on labels of {teacher}, {teacher} − {other}, most images",
        difference(cells[0], cells[1]),
        source="the design of this sweep: a freer student needs more images" if is_freer else ZHOU,
    )


def count_best_by_seed(table: pd.DataFrame, images: int) -> list[np.ndarray]:
    """Count the best student of each teacher, one matrix per seed with all students of all teachers.

    Args:
        table: One row per run.
        images: Index into the numbers of training images, in rising order.
    """
    runs = table[table["data.train_size"] == values_of(table, "data.train_size")[images]]
    note_rows(runs)
    counts = [
        count_best(of_seed, "data.tying", "model.tying", ORDER).to_numpy(float)
        for _, of_seed in runs.groupby("seed")
    ]
    return [count for count in counts if np.isfinite(count).all()]


def fraction_with_tying_of_teacher(table: pd.DataFrame) -> np.ndarray:
    """Estimate the fraction of teachers whose best student has their tying, with the most images."""
    return np.array([np.diag(count).mean() for count in count_best_by_seed(table, -1)])


def shift_of_best(table: pd.DataFrame) -> np.ndarray:
    """Estimate how many tyings freer the best student is with the most images than with the fewest."""
    most, fewest = (count_best_by_seed(table, images) for images in (-1, 0))
    if len(most) != len(fewest):
        return np.empty(0)
    places = np.arange(len(ORDER))
    return np.array([((a - b) @ places).mean() for a, b in zip(most, fewest, strict=True)])


CLAIMS = {
    **dict(claim_lead(teacher, other) for pair in pairwise(ORDER) for teacher, other in (pair, pair[::-1])),
    "For more than half of the teachers, the best student has the tying of its teacher.": measure_fraction(
        "fraction of teachers whose best student has their tying, most images",
        fraction_with_tying_of_teacher,
        expected=more_than(0.5),
        source=ZHOU,
    ),
    (
        "The best students are freer with the most training images than with the fewest, by more than a "
        "quarter of a step from a convolution over ranks 2 and 5 to a locally connected network."
    ): measure(
        "steps of the order of tyings by which the best student is freer, mean over teachers",
        shift_of_best,
        expected=more_than(0.25),
        unit="",
        range=(-3.0, 3.0),
        source="the design of this sweep: a freer student needs more images",
    ),
}
LIMITATIONS = (
    "Inputs are independent Gaussian numbers, and teachers are a single layer, averaged over positions. "
    "Each seed draws its own teachers, some of which are harder to learn than others. Zhou 2021 predicts "
    "the output of every position (a regression) and compares networks by meta-learning over many tasks "
    "with 20 signals each; here, there is one task with one label per signal. Students are trained for a "
    "fixed number of steps: one that is as free as its teacher may still not find its teacher's function,"
    " and a freer one may come closer because it is easier to train. In a pilot of two seeds with 5,000 "
    "steps and 4,096 images, students of rank 2 and 5 fitted 84% and 86% of the training labels of "
    "teachers of their own rank, and locally connected students 98% and 97%. The learning rate was tuned,"
    " but mixing weights may need one of their own."
)
EXPERIMENT = Experiment(
    question="Does the best student have the tying of its teacher?",
    claims=make_claims(CLAIMS, smallest_effect=MARGIN),
    figures={
        "best_student": draw_best(
            "data.tying",
            "model.tying",
            ORDER,
            {f"{size:,} images": {"data.name": "teacher", "data.train_size": size} for size in SIZES},
            ("teacher", "student"),
        )
    },
    limitations=LIMITATIONS,
)
