"""Commands as they are typed: kept beside the runs, asked for again, and completed at TAB."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cnnexp.cli import main as cli
from cnnexp.cli.completion import make_script
from cnnexp.store.runs import read_commands
from cnnexp.sweep.plan import Stack
from cnnexp.sweep.points import SweepPoint, format_rerun_commands
from cnnexp.sweep.runner import SweepRunner
from tests.conftest import SMALL_SWEEP, call_cnnexp

MINE = "# @package _global_\nexperiment: mine\nmodel:\n  features: [2]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a user's own configurations."""
    for name in ("my", "other"):
        (tmp_path / name / "experiment").mkdir(parents=True)
        (tmp_path / name / "experiment" / f"{name}.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path


def run_ids(points: Sequence[SweepPoint]) -> set[str]:
    return {point.config.run_id for point in points}


def test_a_sweep_stores_its_command_as_typed_and_prints_it_again_when_runs_fail(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(runner: SweepRunner, _: object) -> list[Stack]:
        runner.failed = dict.fromkeys(runner.runs, "ValueError: no")
        return []

    monkeypatch.setattr(SweepRunner, "lease_stacks", fail)
    words = [*SMALL_SWEEP, "experiment=my", "model.tying=tiled(2)", "seed=0,1"]
    options = ["-m", "hydra.searchpath=[file://other]", "--config-dir=my"]
    assert call_cnnexp("run", *words, *options) == 1
    printed = capsys.readouterr().err
    typed = shlex.join(["cnnexp", "run", *words, *options])
    assert read_commands(folder / "results" / "mine") == [typed]
    again = shlex.split(printed.splitlines()[-1])
    assert again[:5] == ["cnnexp", "run", "--config-dir", "my", options[1]]
    assert again[-1] == "seed=0,1" and 'model.tying="tiled(2)"' in again


def test_conf_of_the_working_folder_is_searched_unless_a_folder_is_typed(
    folder: Path, launched: list[list[SweepPoint]], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "my").rename(folder / "conf")
    assert call_cnnexp("run", "experiment=my", "train.steps=7") == 0
    (point,) = launched.pop()
    assert point.config.experiment == "mine" and point.config.train.steps == 7
    assert "--config-dir" not in format_rerun_commands([point])[0]
    assert call_cnnexp("run", "--config-dir", "other", "experiment=my") == 2
    assert "searched in other/experiment, experiment of cnnexp" in capsys.readouterr().err
    assert call_cnnexp("run", "experiment=other") == 2
    assert "searched in conf/experiment, experiment of cnnexp" in capsys.readouterr().err


@pytest.mark.parametrize("experiment", ["my", "embedding"])
@pytest.mark.usefixtures("folder")
def test_commands_that_rerun_some_jobs_compose_exactly_these(
    launched: list[list[SweepPoint]], experiment: str
) -> None:
    own = ["--config-dir", "my"] if experiment == "my" else []
    sweep = ["model.tying=shared,local", "optim.learning_rate=0.1,0.2", "seed=0,1"] if own else []
    assert call_cnnexp("run", *own, f"experiment={experiment}", *sweep, "hydra.sweeper.max_batch_size=2") == 2
    assert call_cnnexp("run", *own, f"experiment={experiment}", *sweep) == 0
    jobs = launched.pop()
    some = [jobs[0], jobs[-1], jobs[len(jobs) // 2]]
    for text in format_rerun_commands(some):
        assert call_cnnexp(*shlex.split(text)[1:]) == 0
    assert run_ids([job for jobs in launched for job in jobs]) == run_ids(some)


@pytest.mark.usefixtures("folder")
def test_parameters_of_hydras_own_sweeper_are_accepted(launched: list[list[SweepPoint]]) -> None:
    assert call_cnnexp("run", "+hydra.sweeper.params.optim.learning_rate='0.1,0.2'", "experiment=null") == 0
    assert call_cnnexp("run", "launcher=slurm", "launcher.sbatch={exclude: node7}") == 0
    assert call_cnnexp("run", "-m", "hydra.mode=MULTIRUN", "--config-dir", "my", "experiment=my") == 0
    rates = [job.config.optim.learning_rate for job in launched[0]]
    assert rates == [0.1, 0.2]
    assert launched[1][0].config.launcher.model_dump()["sbatch"] == {"exclude": "node7"}
    assert launched[2][0].config.experiment == "mine"


def test_a_tilde_is_the_home_folder_only_at_the_start_of_a_path(
    folder: Path, launched: list[list[SweepPoint]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder / "home"))
    assert call_cnnexp("run", "results_dir='~/x'") == 0
    assert launched[0][0].config.results_dir == str(folder / "home" / "x")
    assert call_cnnexp("run", "results_dir='a/lr=1'") == 0
    assert launched[1][0].config.results_dir == "a/lr=1"
    assert call_cnnexp("run", "results_dir='./~'") == 0
    assert launched[2][0].config.results_dir == "./~"


def test_a_sweep_refuses_the_folder_of_another_program_but_no_empty_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepRunner, "lease_stacks", lambda *_: [])
    (folder / "results" / "taken").mkdir(parents=True)
    (folder / "results" / "taken" / "thesis.tex").write_text("")
    assert call_cnnexp("run", *SMALL_SWEEP, "name=taken") == 2
    assert [path.name for path in (folder / "results" / "taken").iterdir()] == ["thesis.tex"]
    (folder / "results" / "empty").mkdir()
    for _ in range(2):
        assert call_cnnexp("run", *SMALL_SWEEP, "name=empty") == 0


def test_a_job_that_slurm_refuses_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        "#!/bin/sh\necho 'sbatch: error: Batch job submission failed: no such partition' >&2\nexit 1\n"
    )
    sbatch.chmod(0o755)
    here = tmp_path / "here"
    here.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "cnnexp", "run", *SMALL_SWEEP, "launcher=slurm"],
        cwd=here,
        env={**os.environ, "PATH": f"{sbatch.parent}:{os.environ['PATH']}", "WANDB_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stderr == "cnnexp: launcher=slurm: Batch job submission failed: no such partition\n"
    assert ended.returncode == 2 and list(here.iterdir()) == []


LINES = [
    ("cnnexp re", ["report", "results"]),
    ("cnnexp run seed", ["seed="]),
    ("cnnexp run model.ty", ["model.tying="]),
    ("cnnexp run model.tying=sh", ["model.tying=shared"]),
    ("cnnexp plan model.tying=shared,lo", ["model.tying=shared,local"]),
    ("cnnexp run model.match_tying=den", ["model.match_tying=dense"]),
    ("cnnexp run data=emn", ["data=emnist/letters"]),
    ("cnnexp run data.flip=", ["data.flip=false", "data.flip=true"]),
    ("cnnexp run data=mnist data.train_sp", ["data.train_split="]),
    ("cnnexp run data.train_sp", []),
    ("cnnexp show experiment=tying", ["experiment=tying_dial"]),
    ("cnnexp run --config-dir my experiment=my", ["experiment=my"]),
    ("cnnexp run --config-d", ["--config-dir"]),
    ("cnnexp run hydra/sweeper=o", ["hydra/sweeper=optuna"]),
    ("cnnexp wandb-sweep --me", ["--method"]),
    ("cnnexp results s --format ma", ["markdown"]),
    ("cnnexp results s --where", ["--where"]),
    ("cnnexp report s", ["spring", "summer"]),
    ("cnnexp report --results-dir elsewhere ", ["winter"]),
    ("cnnexp data ", ["list", "prepare"]),
    ("cnnexp data list --d", ["--data-dir"]),
    ("cnnexp completion z", ["zsh"]),
    ("cnnexp nonsense ", []),
]


def complete(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str = "bash"
) -> list[str]:
    """Return the words by which the script of a shell completes a line."""
    with monkeypatch.context() as patch:
        patch.setenv("_CNNEXP_COMPLETE", f"{shell}_complete")
        patch.setenv("COMP_LINE", line)
        patch.setattr(sys, "argv", ["cnnexp"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return capsys.readouterr().out.split()


def test_a_line_is_completed_by_the_words_that_can_follow(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for sweep in ("results/spring", "results/summer", "elsewhere/winter"):
        (folder / sweep / "0123").mkdir(parents=True)
        (folder / sweep / "0123" / "config.yaml").write_text("")
    assert [(line, complete(line, monkeypatch, capsys)) for line, _ in LINES] == LINES


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_the_last_word_of_a_line(tmp_path: Path) -> None:
    program = tmp_path / "cnnexp"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cnnexp "$@"\n')
    program.chmod(0o755)
    script_of_user = """
    tab() {
        COMP_LINE="$1" COMP_POINT=${#1}; COMPREPLY=()
        _cnnexp_completion cnnexp
        echo "${COMPREPLY[*]}"
    }
    tab "cnnexp run model.tying=shared,lo"
    tab "cnnexp rep"
    complete -p cnnexp
    """
    ended = subprocess.run(
        ["bash", "--norc", "-c", 'eval "$(cnnexp completion bash)"' + script_of_user],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout.splitlines()[:2] == ["shared,local", "report"], ended.stderr
    assert ended.stdout.splitlines()[2] == "complete -o default -F _cnnexp_completion cnnexp"
    assert ended.stderr == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_scripts_of_other_shells_ask_cnnexp_for_the_words(shell: str) -> None:
    assert f"_CNNEXP_COMPLETE={shell}_complete cnnexp" in make_script(shell)
    if program := shutil.which(shell):
        assert subprocess.run([program, "-n", "-c", make_script(shell)], timeout=60).returncode == 0
