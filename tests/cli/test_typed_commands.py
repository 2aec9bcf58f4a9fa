"""Commands as they are typed: kept beside the runs, asked for again, and completed at TAB."""

import os
import pty
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cnnexp.cli import main as cli
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
    (sbatch.parent / "srun").symlink_to(sbatch)  # a machine without it counts as one without Slurm
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
    ("cnnexp run seed", ["seed=", "seeds="]),
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


TYPED = {  # lines, and what TAB makes of them
    "cnnexp rep": "cnnexp report",
    "cnnexp run model.ty": "cnnexp run model.tying=",
    "cnnexp run model.tying=shared,lo": "cnnexp run model.tying=shared,local",
    "cnnexp run data=emn": "cnnexp run data=emnist/letters",
    "cnnexp wandb-sweep --me": "cnnexp wandb-sweep --method",
    "cnnexp run --config-dir fold": "cnnexp run --config-dir folder/",
}


@pytest.fixture
def shell_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with the program `cnnexp`, which is in the path, and a folder."""
    program = tmp_path / "cnnexp"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m cnnexp "$@"\n')
    program.chmod(0o755)
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "dumb")
    return tmp_path


def require_shell(name: str) -> str:
    """Return the path of a shell, or skip the test where it is not installed; CI has all of them."""
    path = shutil.which(name)
    if path is None and not os.environ.get("CI_HAS_SHELLS"):
        pytest.skip(f"there is no {name}")
    assert path is not None, f"CI must have {name}"
    return path


@pytest.mark.usefixtures("shell_folder")
def test_bash_completes_the_last_word_of_a_line() -> None:
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
        [require_shell("bash"), "--norc", "-c", 'eval "$(cnnexp completion bash)"' + script_of_user],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.stdout.splitlines()[:2] == ["shared,local", "report"], ended.stderr
    assert ended.stdout.splitlines()[2] == "complete -o default -F _cnnexp_completion cnnexp"
    assert ended.stderr == ""


@pytest.mark.usefixtures("shell_folder")
def test_fish_completes_the_last_word_of_a_line() -> None:
    program = require_shell("fish")
    asks = "; ".join(f"complete -C {shlex.quote(line)}" for line in TYPED)
    ended = subprocess.run(
        [program, "--no-config", "-c", f"cnnexp completion fish | source; {asks}"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    words = [line.rpartition(" ")[2] for line in TYPED.values()]
    assert [line.partition("\t")[0] for line in ended.stdout.splitlines()] == words, ended.stderr
    assert ended.stderr == ""


def test_zsh_completes_a_line_at_tab(shell_folder: Path) -> None:
    program, answers = require_shell("zsh"), shell_folder / "answers"
    script_of_user = f"""
    autoload -Uz compinit && compinit -u -D
    eval "$(cnnexp completion zsh)"
    answer() {{ print -r -- "$BUFFER" >> {answers}; BUFFER= }}
    zle -N answer; bindkey '^X' answer
    print ready >> {answers}
    """
    terminal, of_shell = pty.openpty()
    shell = subprocess.Popen(
        [program, "-f", "-i"], stdin=of_shell, stdout=of_shell, stderr=of_shell, start_new_session=True
    )
    try:
        for number, text in enumerate([script_of_user, *(f"{line}\t\x18" for line in TYPED)], 1):
            os.write(terminal, text.encode())
            printed = wait_for_lines(answers, number, terminal)
    finally:
        shell.kill()
        shell.wait()
    assert [line.strip() for line in answers.read_text().splitlines()] == ["ready", *TYPED.values()], printed


def wait_for_lines(file: Path, number: int, terminal: int) -> str:
    """Read what a terminal shows until a file has so many lines."""
    printed, end = b"", time.monotonic() + 120
    while time.monotonic() < end:
        if select.select([terminal], [], [], 0.05)[0]:
            printed += os.read(terminal, 65536)
        if file.exists() and len(file.read_text(encoding="utf-8").splitlines()) >= number:
            break
    return printed.decode(errors="replace")


@pytest.mark.usefixtures("folder")
def test_a_group_of_an_optimiser_sets_its_learning_rate_and_the_name_alone_does_not(
    launched: list[list[SweepPoint]],
) -> None:
    assert call_cnnexp("run", "optim=lion,muon,adam,lamb,rmsprop") == 0
    rates = {point.config.optim.name: point.config.optim.learning_rate for point in launched[0]}
    assert rates == {"lion": 0.0003, "muon": 0.02, "adam": 0.001, "lamb": 0.01, "rmsprop": 0.001}
    assert call_cnnexp("run", "optim.name=lion") == 0
    assert launched[1][0].config.optim.learning_rate == 0.001
