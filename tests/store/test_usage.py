"""What a sweep used: energy from the counters of the machine, and peak memory."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cnnexp.report.compute import describe_usage
from cnnexp.store.usage import USAGE, EnergyMeter, read_usage, record_usage


def set_counter(root: Path, name: str, microjoules: int) -> None:
    folder = root / "sys/class/powercap" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_energy_is_that_of_all_packages_over_the_end_of_their_counters(tmp_path: Path) -> None:
    set_counter(tmp_path, "intel-rapl:0", 9_000_000)
    set_counter(tmp_path, "intel-rapl:1", 0)
    set_counter(tmp_path, "intel-rapl:0:0", 0)  # a part of the first package
    with EnergyMeter(tmp_path) as meter:
        set_counter(tmp_path, "intel-rapl:0", 2_000_000)  # it started again at 10 J
        meter.sample()
        set_counter(tmp_path, "intel-rapl:0", 4_000_000)
        set_counter(tmp_path, "intel-rapl:1", 500_000)
        set_counter(tmp_path, "intel-rapl:0:0", 400_000)
    assert meter.total("cpu") == pytest.approx(5.5) and meter.total("gpu") is None


def test_counters_that_cannot_be_read_are_no_energy(tmp_path: Path) -> None:
    set_counter(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj").write_text("not a number")
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.total("cpu") is None


def test_energy_of_gpus_is_in_joules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    millijoules = iter((1_000, 5_000, 1_500, 8_000))
    nvml = SimpleNamespace(
        NVMLError=RuntimeError,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: next(millijoules),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.total("gpu") == pytest.approx(3.5)


def test_a_process_that_raises_has_its_record_and_a_report_reads_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), record_usage(tmp_path, "first"):
        raise ZeroDivisionError
    (usage,) = read_usage(tmp_path)
    assert usage.seconds < 60 and usage.peak_bytes > 2**20 and usage.seed_set == "first"
    record = json.loads(next((tmp_path / USAGE).iterdir()).read_text())
    for number, changes in enumerate(
        ({"peak_bytes": 3_000_000_000, "cpu_joules": 3.6e6}, {"seed_set": "pilot", "cpu_joules": 3.6e9})
    ):
        (tmp_path / USAGE / f"{number}.json").write_text(json.dumps(record | changes))
    (tmp_path / USAGE / "edited.json").write_text('{"host": 3}')
    text = describe_usage(tmp_path)
    assert text.startswith("Peak memory: 3GB of a process, by 2 processes") and "1 kWh" in text
    assert describe_usage(tmp_path / "other") == "Energy and peak memory were not measured."


def test_a_sweep_that_trains_records_what_it_used(run: Any, tmp_path: Path) -> None:
    assert run() == 0
    folders = list(tmp_path.rglob(USAGE))
    assert [len(read_usage(folder.parent)) for folder in folders] == [1]
    assert run() == 0  # nothing to train
    assert [len(read_usage(folder.parent)) for folder in folders] == [1]
