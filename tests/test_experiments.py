"""Every size of every experiment answers all of its claims, and a new experiment is two small files."""

import io
import math
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cnnexp import cli, paths
from cnnexp.analysis.claims import judge
from cnnexp.analysis.experiments import load_experiment
from cnnexp.analysis.frame import frame
from cnnexp.analysis.report import publish, write_report
from cnnexp.config import RunConfig
from cnnexp.store.runs import StoredRun
from cnnexp.sweep.jobs import Job
from cnnexp.sweep.summary import summary_of

ROOT = Path(__file__).parent.parent
SIZES = sorted(path.stem for path in (ROOT / "conf/experiment_size").glob("*.yaml"))


@pytest.fixture
def configs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The configurations of an experiment at a size, with one learning rate."""

    def composed(experiment: str, size: str) -> list[RunConfig]:
        seen: list[Job] = []
        untuned = "optim.learning_rate=0.01"

        def keep(jobs: list[Job]) -> dict[str, float]:
            seen.extend(jobs)
            return {job.config.run_id: math.nan for job in jobs}

        monkeypatch.setattr("cnnexp.sweep.dry_run.print_plan", keep)
        monkeypatch.setattr(
            sys, "argv", ["cnnexp", "plan", f"experiment={experiment}", f"size={size}", untuned]
        )
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        return [job.config for job in seen]

    return composed


def invented(config: RunConfig, random: np.random.Generator) -> StoredRun:
    """A run as the store would have it, with counts that are true and accuracies that are not."""
    train, test = random.uniform(0.6, 1), random.uniform(0.2, 0.6)
    metrics = {"train/accuracy": train, "test/accuracy": test, "gap/accuracy": train - test}
    metrics |= {"validation/accuracy": test}
    history = [{"step": step, "epoch": 0.0, "test/accuracy": step / 10} for step in (0, 5)]
    last = {"step": 10, "epoch": 1.0} | metrics
    summary = summary_of(config, last, status="finished", seconds=1.0)
    summary |= {
        f"learned/{measure}/conv_0": random.uniform() for measure in ("distance", "zeros", "locality")
    }
    values = config.model_dump()
    return StoredRun(
        run_id=config.run_id,
        folder=Path(),
        config=values,
        summary=summary,
        history=[*history, last],
        status="finished",
    )


@pytest.mark.parametrize("size", [size for size in SIZES if not size.endswith("_demo")])
def test_every_size_measures_every_claim_and_draws_every_figure(configs: Any, size: str) -> None:
    name, _, size = size.rpartition("_")
    random = np.random.default_rng(0)
    table = frame([invented(config, random) for config in configs(name, size)])
    experiment = load_experiment(name)
    judged = judge(experiment.claims, table)
    assert [one.claim.sentence for one in judged if one.interval is None] == []
    assert min(one.seeds for one in judged if not one.claim.exact) >= 5
    for drawing in experiment.figures.values():
        assert drawing.needs(table)
        drawing.draw(table).savefig(png := io.BytesIO(), dpi=40)
        assert len(png.getvalue()) > 3_000


def test_a_new_experiment_is_two_small_files(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (ROOT / "experiments/README.md").read_text()
    (sweep,) = re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL)
    (module,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len((sweep + module).splitlines()) < 40
    installed = tmp_path / "installed"
    shutil.copytree(ROOT / "conf", installed / "conf")
    (installed / "experiments").mkdir()
    (installed / "conf/experiment/pooling.yaml").write_text(sweep)
    (installed / "experiments/pooling.py").write_text(module)
    monkeypatch.setattr(paths, "PACKAGE", installed)
    assert run("experiment=pooling") == 0
    report = write_report(tmp_path / "results/pooling")
    assert [one.claim.sentence for one in report.judged] == [
        "Max pooling is better than average.",
        "Max pooling is better than none.",
    ]
    assert len(report.cells) == 3 and set(report.cells["seeds"]) == {5}
    published = publish(report, tmp_path / "kept")
    pictures = re.findall(r"\]\((figures/[\w.]+)\)", published.read_text())
    assert pictures and all((tmp_path / "kept" / name).stat().st_size < 300_000 for name in pictures)
