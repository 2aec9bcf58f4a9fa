"""Every size of every experiment answers all of its claims, and a new experiment is two small files."""

import ast
import itertools
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flax import nnx
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cnnexp.analysis.cells import resolve_cell, select_cell
from cnnexp.analysis.dataframe import make_dataframe
from cnnexp.analysis.verdicts import judge
from cnnexp.config import RunConfig
from cnnexp.core import machine as paths
from cnnexp.nn.geometry import Geometry
from cnnexp.nn.tied_conv import TiedConv
from cnnexp.plots.figures import Drawing
from cnnexp.plots.layers import plot_kernels
from cnnexp.plots.rendering import render, shrink_png
from cnnexp.report.experiments import load_experiment
from cnnexp.report.output import publish_report, write_report
from cnnexp.report.report import MAX_NETWORKS
from cnnexp.store.runs import StoredRun
from cnnexp.sweep.plan import group_by_program
from cnnexp.sweep.points import SweepPoint
from cnnexp.sweep.provenance import summary_of
from tests.conftest import call_cnnexp
from tests.markdown import read_blocks

ROOT = Path(__file__).parents[2]
LAYERS = ("conv_0", "dense_0")
SIZES = sorted(path.stem for path in (ROOT / "conf/experiment_size").glob("*.yaml"))


@pytest.fixture
def compose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compose the configurations of an experiment at a size, with one learning rate."""

    def compose_size(experiment: str, size: str) -> list[RunConfig]:
        jobs_of_plan: list[SweepPoint] = []
        untuned = "optim.learning_rate=0.01"

        def keep(jobs: list[SweepPoint]) -> dict[str, float]:
            jobs_of_plan.extend(jobs)
            return {job.config.run_id: math.nan for job in jobs}

        monkeypatch.setattr("cnnexp.cli.plan.print_plan", keep)
        assert call_cnnexp("plan", f"experiment={experiment}", f"size={size}", untuned) == 0
        return [job.config for job in jobs_of_plan]

    return compose_size


def invent_table(configs: list[RunConfig], random: np.random.Generator) -> pd.DataFrame:
    """Invent the table of a sweep: counts are true, accuracies are random."""
    summaries: dict[str, dict[str, Any]] = {}  # of runs that differ in their seed: counting takes long
    runs = []
    for config in configs:
        cell = config.model_copy(update={"seed": 0}).model_dump_json()
        if cell not in summaries:
            last: dict[str, int | float] = {"step": 10, "epoch": 1.0}
            summaries[cell] = summary_of(config, last, status="finished", seconds=1.0)
        runs.append(invent_run(config, summaries[cell], random))
    return make_dataframe(runs)


def invent_run(config: RunConfig, counts: dict[str, Any], random: np.random.Generator) -> StoredRun:
    train, test = random.uniform(0.6, 1), random.uniform(0.2, 0.6)
    metrics = {"train/accuracy": train, "test/accuracy": test, "gap/accuracy": train - test}
    metrics |= {"validation/accuracy": test}
    history = [{"step": step, "epoch": 0.0, "test/accuracy": step / 10} for step in (0, 5)]
    learned = {f"learned/{measure}/conv_0": random.uniform() for measure in ("distance", "zeros", "locality")}
    by_unit = ("zeros", "inverse_participation", "surviving_neighbours")
    learned |= {f"learned/{measure}/{layer}": random.uniform() for measure in by_unit for layer in LAYERS}
    probed = ("shift_consistency/circular", "stability/ratio")
    learned |= {f"{when}/{name}": random.uniform() for when in ("learned", "initial") for name in probed}
    return StoredRun(
        run_id=config.run_id,
        folder=Path(),
        config=config.model_dump(),
        summary=counts | metrics | learned | {"run_id": config.run_id, "seed": config.seed},
        history=[*history, {"step": 10, "epoch": 1.0} | metrics],
        status="finished",
    )


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(
            size,
            marks=[pytest.mark.slow]
            * (size.endswith(("_paper", "_medium")) or size == "sample_complexity_small"),
        )
        for size in SIZES
        if not size.endswith("_demo")
    ],
)
def test_every_size_measures_every_claim_and_draws_every_figure(compose: Any, size: str) -> None:
    name, _, size = size.rpartition("_")
    random = np.random.default_rng(0)
    configs = compose(name, size)
    assert {config.name for config in configs} == {f"{name}_medium" if size == "medium" else name}
    table = invent_table(configs, random)
    experiment = load_experiment(name)
    verdicts = judge(experiment.claims, table)
    about_other_data = (
        ("On MNIST-1D", "On shuffled MNIST-1D", "On digits at positions") if size == "medium" else ()
    )
    for verdict in verdicts:
        is_measured = not verdict.claim.sentence.startswith(about_other_data or "nothing")
        assert (verdict.interval is not None) == is_measured, verdict.claim.sentence
        assert verdict.seeds >= (5 if is_measured and not verdict.claim.exact else 0)
    in_any_order = judge(experiment.claims, table.sample(frac=1, random_state=0))
    assert [(verdict.outcome, verdict.effect) for verdict in in_any_order] == [
        (verdict.outcome, verdict.effect) for verdict in verdicts
    ]
    for rule in experiment.kernels.values():
        assert len(select_cell(table, resolve_cell(rule, table)))
    for caption, drawing in experiment.figures.items():
        assert drawing.needs(table) == ((size, caption) != ("medium", "signals"))
        if not drawing.needs(table):
            continue
        figure = drawing.draw(table)
        assert figure.axes and all(count_visible_values(axes) > 1 for axes in figure.axes), caption


@pytest.mark.parametrize(("size", "programs"), [("demo", 3), ("small", 8), ("paper", 9)])
def test_why_convolutions_has_one_program_per_tying_connectivity_head_and_width(
    compose: Any, size: str, programs: int
) -> None:
    runs = {run.run_id: run for run in compose("why_convolutions", size)}
    kinds = {
        (run.model.tying, run.model.connectivity, run.model.head, run.model.match) for run in runs.values()
    }
    assert len(group_by_program(runs)) == len(kinds) == programs


@pytest.mark.parametrize("module", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_an_experiment_has_at_most_130_lines_beside_its_limitations(module: Path) -> None:
    lines = module.read_text(encoding="utf-8").splitlines()
    statements = ast.parse("\n".join(lines)).body
    (text,) = (
        s for s in statements if isinstance(s, ast.Assign) and ast.unparse(s.targets[0]) == "LIMITATIONS"
    )
    del lines[text.lineno - 1 : text.end_lineno]
    assert sum(bool(line.strip()) for line in lines) <= 130


def count_visible_values(axes: Axes) -> int:
    """Count the distinct values that lines and images show within the limits of their axes."""
    (left, right), (bottom, top) = sorted(axes.get_xlim()), sorted(axes.get_ylim())
    points = np.concatenate([np.empty((0, 2)), *(line.get_xydata() for line in axes.lines)])
    x, y = points[np.isfinite(points).all(axis=1)].T
    inside = (left <= x) & (x <= right) & (bottom <= y) & (y <= top)
    pixels = [np.unique(np.ma.compressed(image.get_array())) for image in axes.images]
    return len({*zip(x[inside], y[inside], strict=True)}) + sum(map(len, pixels))


def test_only_values_within_the_limits_of_axes_are_visible() -> None:
    axes = Figure().subplots()
    axes.plot([], [])
    assert count_visible_values(axes) == 0
    axes.plot([1, 2, 2, 3], [1, np.nan, 5, 9])
    assert count_visible_values(axes) == 3
    axes.set_ylim(0, 6)
    assert count_visible_values(axes) == 2


def find_estimate(name: str, sentence: str) -> Any:
    """Find the estimate of the one claim of an experiment that begins with a sentence."""
    (claim,) = (one for one in load_experiment(name).claims if one.sentence.startswith(sentence))
    return claim.estimate


@pytest.mark.parametrize(
    ("name", "sentence", "key", "chosen"),
    [
        ("translation", "A locally connected network trained with random shifts", "data.crop", 1),
        ("embedding", "A local network trained as a convolution for part", "train.tied_steps", 50),
        ("locality_sharing_ladder", "A shallow dense network is more than 2 points", "optim.l1", 0.00002),
    ],
)
def test_a_tuned_value_is_chosen_on_validation_images(
    compose: Any, name: str, sentence: str, key: str, chosen: float
) -> None:
    random = np.random.default_rng(0)
    table = invent_table(compose(name, "small"), random)
    tried = table[key].notna() & (table["model.tying"] != "shared")
    # The larger, the better on test images and the worse on those of validation.
    table["test/accuracy"] = 0.5 + 0.01 * table[key].rank(method="dense").where(tried, 0)
    table["validation/accuracy"] = 1 - table["test/accuracy"]
    worst_on_test = table.loc[tried & (table[key] == chosen), "test/accuracy"].iloc[0]
    estimate = find_estimate(name, sentence)(table)
    assert estimate == pytest.approx(np.full(5, worst_on_test - 0.5))


def test_sparse_weights_in_random_places_are_not_measured_as_local(compose: Any) -> None:
    random = np.random.default_rng(0)
    table = invent_table(compose("locality_sharing_ladder", "small"), random)
    kernels = random.normal(size=(1000, 16, 16))
    kernels[np.abs(kernels) < np.quantile(np.abs(kernels), 0.9)] = 0
    inside = [
        (kernels[:, i : i + 9, j : j + 9] ** 2).sum((1, 2)) for i, j in itertools.product(range(8), range(8))
    ]
    table["learned/zeros/conv_0"] = 0.9
    table["learned/locality/conv_0"] = np.max(inside, axis=0).sum() / (kernels**2).sum()
    beyond_chance = find_estimate("locality_sharing_ladder", "The weights that beta-LASSO leaves")(table)
    assert len(beyond_chance) == 5 and np.abs(beyond_chance).max() < 0.02


@pytest.mark.slow
def test_pictures_of_kernels_show_tiles_and_stay_small() -> None:
    geometry = Geometry(in_shape=(16, 16, 1), features=4, kernel_size=(3, 3))
    tiles = TiedConv.from_geometry(geometry, tying="tiled(2)", rngs=nnx.Rngs(0)).sample_kernels(8, 4)
    assert (tiles[:-2] == tiles[2:]).all() and not (tiles[:-1] == tiles[1:]).any()
    blocks = TiedConv.from_geometry(geometry, tying="blocked(2)", rngs=nnx.Rngs(0)).sample_kernels(8, 4)
    assert (blocks[:4] == blocks[0]).all() and not (blocks[3] == blocks[4]).any()
    dense = TiedConv.from_geometry(geometry, tying="dense", rngs=nnx.Rngs(0)).sample_kernels(8, 4)
    networks = {f"net {number}": {"conv_0": np.asarray(dense)} for number in range(MAX_NETWORKS)}
    drawing = Drawing(draw=lambda _: plot_kernels(networks), caption="")
    assert len(shrink_png(render(drawing, pd.DataFrame()).png)) < 300_000


@pytest.mark.slow
def test_a_new_experiment_is_two_small_files(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = read_blocks("experiments/README.md", "yaml", "python")
    sweep, module = (
        block.code for block in blocks if re.search("experiment: pooling|EXPERIMENT =", block.code)
    )
    assert len((sweep + module).splitlines()) < 40
    installed = tmp_path / "installed"
    shutil.copytree(ROOT / "conf", installed / "conf")
    (installed / "experiments").mkdir()
    (installed / "conf/experiment/pooling.yaml").write_text(sweep)
    (installed / "experiments/pooling.py").write_text(module)
    monkeypatch.setattr(paths, "PACKAGE", installed)
    assert run("experiment=pooling") == 0
    report = write_report(tmp_path / "results/pooling")
    assert [one.claim.sentence for one in report.verdicts] == [
        "With 512 training images, max pooling is more accurate than average pooling.",
        "With 512 training images, max pooling is more accurate than no pooling.",
    ]
    assert len(report.cells) == 3 and set(report.cells["seeds"]) == {5}
    published = publish_report(report, tmp_path / "kept")
    pictures = re.findall(r"\]\((figures/[\w.]+)\)", published.read_text())
    assert pictures and all((tmp_path / "kept" / name).stat().st_size < 300_000 for name in pictures)
