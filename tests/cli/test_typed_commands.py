"""Commands as they are typed: kept beside the runs, asked for again, and completed at TAB."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cnnexp.cli import main as cli
from cnnexp.cli.completion import make_script
from cnnexp.store.runs import read_commands
from cnnexp.sweep.plan import Stack
from cnnexp.sweep.points import SweepPoint, rerun_commands
from cnnexp.sweep.run import SweepRunner
from tests.conftest import SMALL_SWEEP

MINE = "# @package _global_\nexperiment: mine\nmodel:\n  features: [2]\n"
Command = Callable[..., int]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command line in a folder with configurations of one's own."""
    for folder in ("my", "other"):
        (tmp_path / folder / "experiment").mkdir(parents=True)
        (tmp_path / folder / "experiment" / f"{folder}.yaml").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["cnnexp", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        return int(stop.value.code or 0)

    return run


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[list[SweepPoint]]:
    """The points of each command, which are not trained."""
    kept: list[list[SweepPoint]] = []

    def launch(points: Sequence[SweepPoint], command: str | None = None) -> dict[str, float]:
        kept.append(list(points))
        return {point.config.run_id: 0.5 for point in points}

    monkeypatch.setattr("cnnexp.sweep.launchers.choose_launch", lambda name: launch)
    return kept


def run_ids(points: Sequence[SweepPoint]) -> set[str]:
    return {point.config.run_id for point in points}


def test_a_sweep_keeps_its_command_as_typed_and_says_it_again_when_runs_fail(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(runner: SweepRunner, _: object) -> list[Stack]:
        runner.failed = dict.fromkeys(runner.runs, "ValueError: no")
        return []

    monkeypatch.setattr(SweepRunner, "lease_stacks", fail)
    words = [*SMALL_SWEEP, "experiment=my", "model.tying=tiled(2)", "seed=0,1"]
    options = ["--config-dir", "my", "hydra.searchpath=[file://other]"]
    assert command("run", *options, *words) == 1
    said = capsys.readouterr().err
    typed = shlex.join(["cnnexp", "run", "--config-dir", "my", options[2], *words])
    assert read_commands(tmp_path / "results" / "mine") == [typed]
    again = shlex.split(said.splitlines()[-1])
    assert again[:5] == ["cnnexp", "run", "--config-dir", "my", options[2]]
    assert again[-1] == "seed=0,1" and 'model.tying="tiled(2)"' in again


@pytest.mark.parametrize("experiment", ["my", "embedding"])
def test_commands_to_run_some_jobs_again_ask_for_just_these(
    command: Command, launched: list[list[SweepPoint]], experiment: str
) -> None:
    own = ["--config-dir", "my"] if experiment == "my" else []
    sweep = ["model.tying=shared,local", "optim.learning_rate=0.1,0.2", "seed=0,1"] if own else []
    assert command("run", *own, f"experiment={experiment}", *sweep, "hydra.sweeper.max_batch_size=2") == 2
    assert command("run", *own, f"experiment={experiment}", *sweep) == 0
    points = launched.pop()
    some = [points[0], points[-1], points[len(points) // 2]]
    for text in rerun_commands(some):
        assert command(*shlex.split(text)[1:]) == 0
    assert run_ids([point for asked in launched for point in asked]) == run_ids(some)


def test_what_hydra_searches_by_itself_can_be_typed(
    command: Command, launched: list[list[SweepPoint]]
) -> None:
    assert command("run", "+hydra.sweeper.params.optim.learning_rate='0.1,0.2'", "experiment=null") == 0
    assert command("run", "launcher=slurm", "launcher.sbatch={exclude: node7}") == 0
    assert command("run", "-m", "hydra.mode=MULTIRUN", "--config-dir", "my", "experiment=my") == 0
    rates = [point.config.optim.learning_rate for point in launched[0]]
    assert rates == [0.1, 0.2]
    assert launched[1][0].config.launcher.model_dump()["sbatch"] == {"exclude": "node7"}
    assert launched[2][0].config.experiment == "mine"


def test_a_home_is_where_a_shell_has_it(
    command: Command, launched: list[list[SweepPoint]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert command("run", "results_dir='~/x'") == 0
    assert launched[0][0].config.results_dir == str(tmp_path / "home" / "x")
    assert command("run", "results_dir='a/lr=1'") == 0
    assert launched[1][0].config.results_dir == "a/lr=1"
    assert command("run", "results_dir='./~'") == 0
    assert launched[2][0].config.results_dir == "./~"


def test_a_folder_of_another_program_is_refused_and_one_of_runs_is_not(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(SweepRunner, "lease_stacks", lambda *_: [])
    (tmp_path / "results" / "taken").mkdir(parents=True)
    (tmp_path / "results" / "taken" / "thesis.tex").write_text("")
    assert command("run", *SMALL_SWEEP, "name=taken") == 2
    assert [path.name for path in (tmp_path / "results" / "taken").iterdir()] == ["thesis.tex"]
    (tmp_path / "results" / "empty").mkdir()
    for _ in range(2):
        assert command("run", *SMALL_SWEEP, "name=empty") == 0


def test_what_slurm_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
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


def completed(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str = "bash"
) -> list[str]:
    """What the script of a shell gets as the words that can end a line."""
    with monkeypatch.context() as patch:
        patch.setenv("_CNNEXP_COMPLETE", f"{shell}_complete")
        patch.setenv("COMP_LINE", line)
        patch.setattr(sys, "argv", ["cnnexp"])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert stop.value.code == 0
    return capsys.readouterr().out.split()


def test_lines_are_completed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for sweep in ("results/spring", "results/summer", "elsewhere/winter"):
        (tmp_path / sweep / "0123").mkdir(parents=True)
        (tmp_path / sweep / "0123" / "config.yaml").write_text("")
    assert [(line, completed(line, monkeypatch, capsys)) for line, _ in LINES] == LINES


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_a_line_from_where_it_breaks_words(tmp_path: Path) -> None:
    program = tmp_path / "cnnexp"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cnnexp "$@"\n')
    program.chmod(0o755)
    asked = """
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
        ["bash", "--norc", "-c", 'eval "$(cnnexp completion bash)"' + asked],
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
def test_scripts_of_other_shells_ask_the_same(shell: str) -> None:
    assert f"_CNNEXP_COMPLETE={shell}_complete cnnexp" in make_script(shell)
    if found := shutil.which(shell):
        assert subprocess.run([found, "-n", "-c", make_script(shell)], timeout=60).returncode == 0
