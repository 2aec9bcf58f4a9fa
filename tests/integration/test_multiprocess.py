"""Training on several devices, in one process or two, gives the results of one device."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from cnnexp.core.errors import UsageError
from cnnexp.core.terminal import DISK_ERROR
from cnnexp.sweep.devices import DETERMINISTIC, configure_jax
from cnnexp.sweep.multiprocess import check_processes
from tests.clusters import (
    compute_largest_difference,
    read_states,
    start_run,
    wait_for_exit,
    wait_for_worker,
    wait_until,
)
from tests.fakes.tfds_digits import NAME, prepare_digits

SWEEP = [
    "model.tying=local",
    "model.features=[2]",
    "data.train_size=100",
    "data.batch_size=32",
    "data.validation_size=40",
    *["data.pixel_noise=0.2", "data.salt_and_pepper=0.05", "data.shift=1", "data.resolution=7"],
    *["data.image_noise=0.1", "data.label_noise=0.1", "data.permutation=per_image", "data.block=2"],
    *["data.crop=2", "data.flip=true"],
    "train.steps=12",
    "train.eval_every=4",
    "name=sweep",
]


def list_meshes() -> str:
    """List the mesh of 8 devices for one to nine runs, with batches of 32 and then of 30 images."""
    program = (
        "from cnnexp.training.stacking import make_device_mesh\n"
        "meshes = [make_device_mesh(runs, size) for size in (32, 30) for runs in range(1, 10)]\n"
        "print(*('x'.join(map(str, shape)) for shape in (mesh.devices.shape for mesh in meshes)))"
    )
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    return subprocess.check_output([sys.executable, "-c", program], env=environment, text=True).strip()


@pytest.mark.slow
def test_devices_divide_runs_first_and_then_batches_of_a_divisible_size() -> None:
    assert list_meshes() == "1x8 2x4 3x2 4x2 5x1 6x1 7x1 8x1 8x1 1x6 2x3 3x2 4x2 5x1 6x1 7x1 8x1 8x1"


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "stream"), [("0", "always"), ("0,1,2", "never")])
def test_eight_devices_train_what_one_device_trains(tmp_path: Path, seeds: str, stream: str) -> None:
    images = ["data.images=200", "data.test_images=50"]
    if stream == "always":
        images = ["data=tfds", f"data.name={NAME}", f"data.data_dir={prepare_digits(tmp_path).parents[1]}"]
    sweep = [*images, *SWEEP, f"seed={seeds}", f"data.stream={stream}"]
    shared, alone = tmp_path / "shared", tmp_path / "alone"
    eight = {"JAX_NUM_CPU_DEVICES": "8"}
    wait_for_exit(start_run(shared, *sweep, "train.parallel=data", environment=eight), shared)
    wait_for_exit(start_run(alone, *sweep), alone)
    assert compute_largest_difference(shared, alone) <= 1e-5


@pytest.mark.slow
def test_a_profile_is_written_and_changes_nothing(tmp_path: Path) -> None:
    sweep = [*SWEEP, "model.tying=shared", "data.images=200", "data.test_images=50"]
    traced, plain = tmp_path / "traced", tmp_path / "plain"
    wait_for_exit(start_run(traced, *sweep, "train.profile=trace", "sweep.deterministic=true"), traced)
    wait_for_exit(start_run(plain, *sweep), plain)
    assert {path.suffix for path in traced.glob("trace/plugins/profile/*/*")} == {".gz", ".pb"}
    assert compute_largest_difference(traced, plain) == 0


@pytest.mark.slow
def test_a_training_of_one_piece_is_profiled(run: Any) -> None:
    assert run("train.steps=2", "train.eval_every=2", "train.profile=trace") == 0
    assert list(Path("trace").glob("plugins/profile/*/perfetto_trace.json.gz"))


def test_deterministic_kernels_are_set_once_and_refused_after_jax_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jax.devices()
    monkeypatch.setenv("XLA_FLAGS", DETERMINISTIC)
    configure_jax(deterministic=True)
    assert os.environ["XLA_FLAGS"] == DETERMINISTIC
    monkeypatch.delenv("XLA_FLAGS")
    with pytest.raises(UsageError, match=r"sweep\.deterministic=true: JAX has already started"):
        configure_jax(deterministic=True)


def test_several_processes_refuse_runs_whose_batches_they_cannot_divide(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(UsageError, match=r"train\.parallel=none: must be data when several processes"):
        check_processes([configure()])
    with pytest.raises(
        UsageError, match=r"data\.batch_size=20: must be divisible by the number of processes"
    ):
        check_processes([configure(train={"parallel": "data"})])


def start_two_processes(folder: Path, *overrides: str, second: Path | None = None) -> list[subprocess.Popen]:
    """Start both processes of a sweep that train together; `second` is the other's folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together = ["train.parallel=data", f"launcher.coordinator=127.0.0.1:{port}", "launcher.processes=2"]
    return [
        start_run(where, *overrides, *together, f"launcher.process={number}", log=f"run{number}.txt")
        for number, where in enumerate((folder, second or folder))
    ]


def wait_for_both(processes: list[subprocess.Popen], folder: Path, code: int = 0) -> str:
    """Wait until both end with an exit code, and return what they printed."""
    return "".join(
        wait_for_exit(process, folder, code=code, log=f"run{number}.txt")
        for number, process in enumerate(processes)
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_what_one_device_trains(tmp_path: Path) -> None:
    images = ["data=tfds", f"data.name={NAME}", f"data.data_dir={prepare_digits(tmp_path).parents[1]}"]
    sweep = [*images, *SWEEP, "seed=0,1", "data.stream=always"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    wait_for_both(start_two_processes(together, *sweep), together)
    wait_for_exit(start_run(alone, *sweep), alone)
    assert compute_largest_difference(together, alone) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_both_processes_stop_when_one_is_killed_or_terminated_and_resume(tmp_path: Path) -> None:
    sweep = [
        *["data.images=200", "data.test_images=50", *SWEEP, "model.tying=shared"],
        # Enough steps that the runs have not ended when the test notices that they have begun.
        *["train.steps=1000", "train.eval_every=20", "sweep.checkpoint_seconds=0.5"],
    ]
    disturbed, alone = tmp_path / "disturbed", tmp_path / "alone"
    first, second = start_two_processes(disturbed, *sweep)
    wait_for_worker(disturbed, "shared", number=1)
    second.kill()
    second.wait()
    printed = wait_for_exit(first, disturbed, code=75, log="run0.txt")
    assert "cnnexp: another process was lost; run the same command again" in printed
    assert read_states(disturbed)["shared 0"]["status"] == "interrupted"
    again = start_two_processes(disturbed, *sweep)
    rows = read_states(disturbed)["shared 0"]["rows"]
    wait_until(lambda: read_states(disturbed)["shared 0"]["rows"] > rows, "more of the run")
    again[1].send_signal(signal.SIGTERM)
    assert wait_for_both(again, disturbed, code=75).count("interrupted and saved") == 2
    first, second = start_two_processes(disturbed, *sweep)
    rows = read_states(disturbed)["shared 0"]["rows"]
    wait_until(lambda: read_states(disturbed)["shared 0"]["rows"] > rows, "still more of the run")
    first.kill()
    first.wait()
    assert second.wait(timeout=60) in (75, -signal.SIGABRT)  # whichever of us and JAX is faster
    on_two_devices = [*sweep, "train.parallel=data"]  # which add up in the same order
    for folder in (disturbed, alone):
        ended = start_run(folder, *on_two_devices, environment={"JAX_NUM_CPU_DEVICES": "2"})
        assert "corrupt" not in wait_for_exit(ended, folder)
    assert compute_largest_difference(disturbed, alone) <= 1e-5


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_full_disk_of_one_process_stops_both(tmp_path: Path) -> None:
    sweep = ["data.images=200", "data.test_images=50", *SWEEP, "model.tying=shared", "train.steps=100000"]
    processes = start_two_processes(tmp_path, *sweep)
    wait_for_worker(tmp_path, "shared", number=1)
    (history,) = tmp_path.glob("results/sweep/*/history.jsonl")
    history.unlink()
    history.symlink_to("/dev/full")
    printed = wait_for_both(processes, tmp_path, code=DISK_ERROR)  # long before the last step
    assert "No space left on device" in printed and "another process has failed" in printed
    history.unlink()  # whoever reads it would never come to its end
    history.touch()
    assert read_states(tmp_path)["shared 0"]["status"] in ("running", "interrupted")  # to be resumed


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_processes_that_see_different_stores_are_refused(tmp_path: Path) -> None:
    first_folder, second_folder = tmp_path / "here", tmp_path / "there"
    processes = start_two_processes(
        first_folder, "data.images=200", "data.test_images=50", *SWEEP, second=second_folder
    )
    for number, folder in enumerate((first_folder, second_folder)):
        printed = wait_for_exit(processes[number], folder, code=2, log=f"run{number}.txt")
        assert (
            "cnnexp: results_dir=results: not all 2 processes see the files that the first one writes"
            in printed
        )
