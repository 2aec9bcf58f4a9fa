"""The benchmark of an accelerator: every section runs, and what has been measured is on disk."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/bench/accelerator.py"


def measure(folder: Path, *options: str) -> list[dict[str, Any]]:
    """Run the benchmark at its smallest and return its rows."""
    command = [sys.executable, str(SCRIPT), "--tiny", f"--out={folder}", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    assert len((folder / "table.txt").read_text(encoding="utf-8").splitlines()) == len(lines)
    return [json.loads(line) for line in lines]


def test_products_and_copies_have_rates(tmp_path: Path) -> None:
    rows = measure(tmp_path, "--only=peaks", "--minutes=3")
    rates = [row for row in rows if row.get("tflops", 0) > 0 or row.get("tbytes", 0) > 0]
    assert [row["case"].rpartition(" ")[2] for row in rates] == ["float32", "tf32", "bfloat16", "copy"]
    assert rows[-1]["section"] == "time" and not rows[-1]["note"]


@pytest.mark.slow
def test_a_section_without_time_is_stopped_and_the_next_one_starts(tmp_path: Path) -> None:
    rows = measure(tmp_path, "--only=demo,nets", "--minutes=0")
    assert [row["case"] for row in rows if row["section"] == "time"] == ["demo", "nets"]
    late = [row for row in rows if row.get("note", "").endswith("out of time")]  # by itself, or by the parent
    assert {"demo", "nets"} <= {row["section"] for row in late} | {row["case"] for row in late}
    assert not any("seconds" in row for row in rows if row["section"] != "time")


@pytest.mark.slow
def test_programs_and_commands_are_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    draw = lambda n: {"images": rng.integers(0, 256, (n, 28, 28), np.uint8), "labels": np.arange(n) % 10}  # noqa: E731
    arrays = {f"{split}_{key}": value for split in ("train", "test") for key, value in draw(300).items()}
    np.savez(tmp_path / "images.npz", **arrays)
    sections = ["layers", "steps", "stacks", "demo", "nets"]
    options = [f"--only={','.join(sections)}", "--minutes=15", f"--images={tmp_path / 'images.npz'}"]
    rows = measure(tmp_path, *options)
    assert [(row["case"], row["note"]) for row in rows if row["section"] == "time"] == [
        (s, "") for s in sections
    ]
    compared = {row["case"]: row["against"] for row in rows if "against" in row and row["section"] != "aims"}
    assert {"linen.ConvLocal"} == set(compared["local 2x6x1x2x3x1 float32 loop"])
    assert {"Flax alone"} == set(compared["shared float32 solo"])
    assert any(row["case"] == "10,000 nets" for row in rows)
    cases = [row["case"] for row in rows if row["section"] == "demo"]
    assert cases == ["cold: 9 runs", "report", "warm: 9 runs"]
