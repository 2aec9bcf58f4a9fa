"""A new experiment is two small files, as experiments/README.md has them."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cnnexp import paths
from cnnexp.analysis.report import publish, write_report

ROOT = Path(__file__).parent.parent


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
