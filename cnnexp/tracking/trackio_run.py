"""One run of the store as one run of Trackio, whose dashboard needs no account and no network."""

import contextlib
import io
import os
import sqlite3
import warnings
from pathlib import Path
from typing import Any

from cnnexp.config.sections import LABEL_ACCURACY
from cnnexp.plots.layers import read_kernel_mosaics
from cnnexp.store.files import read_json, write_json
from cnnexp.store.runs import ENDED, read_run
from cnnexp.tracking.target import Target

LEDGER = "trackio.json"  # in the run's folder: the name of the run at Trackio, and what was sent
# The order of the charts: first whether the networks learn what they were not trained on. Groups that are not
# named follow by their names, and `epoch` stands for the charts without a group, which are axes.
SPLITS, METRICS = ("validation", "gap", "test", "train"), (LABEL_ACCURACY, "accuracy")
CHARTS = [*(f"{split}/{metric}" for split in SPLITS for metric in METRICS), "epoch"]


def trackio_folder(results: Path) -> Path:
    """Return the folder of Trackio's databases, which lies beside the sweeps."""
    return results / "trackio"


def use_trackio(results: Path) -> None:
    """Configure where Trackio stores its files, and keep it off the network, before it is imported."""
    os.environ["TRACKIO_DIR"] = str(trackio_folder(results).resolve())
    os.environ["HF_HUB_OFFLINE"] = "1"
    for name in ("SPACE_ID", "SERVER_URL", "DATASET_ID", "BUCKET_ID", "WEBHOOK_URL"):
        os.environ.pop(f"TRACKIO_{name}", None)


class TrackioRun:
    """A Trackio run that follows a run's folder; `trackio.json` in the folder records what was sent.

    Args:
        folder: the run's.
        target: the project.
        cell: the name of its cell.
    """

    was_on_server = False  # see `WandbRun`

    def __init__(self, folder: Path, target: Target, cell: str):
        self._folder, self._target, self._cell = folder, target, cell
        self._sent = 0  # rows

    @property
    def is_complete(self) -> bool:
        """Return whether the run has ended and was sent completely."""
        status = read_json(self._folder / "status.json").get("status")
        return read_json(self._folder / LEDGER).get("status") == status in (*ENDED, "stopped")

    def send_new(self) -> None:
        """Send the rows that Trackio does not have yet."""
        if not (self._folder / "status.json").exists():
            return
        run = read_run(self._folder)
        if len(run.history) > self._sent:
            use_trackio(self._folder.parent.parent)
            # Trackio finds a run by its name, which must not change while the run is sent, and must be
            # different in all sweeps of a project.
            name = f"{self._cell} seed {run.config['seed']} ({run.config['name']})"
            name = read_json(self._folder / LEDGER).get("name", name)
            self._record(name=name)
            self._log(name, run)
            self._sent = len(run.history)
        if run.status in (*ENDED, "stopped"):
            self._record(status=run.status, rows=self._sent)

    def _record(self, **values: object) -> None:
        write_json(self._folder / LEDGER, read_json(self._folder / LEDGER) | values)

    def _log(self, name: str, run: Any) -> None:
        import trackio

        config = {"run_id": run.run_id, "sweep": run.config["name"], "status": run.status, **run.config}
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trackio_run = trackio.init(
                project=self._target.project,
                name=name,
                group=run.config["name"],
                config=config,
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
            logged_steps = self._logged_steps(name)
            for row in run.history:
                if row["step"] not in logged_steps:  # Trackio reserves the name "step"
                    metrics = {key: value for key, value in row.items() if key != "step"}
                    mosaics = read_kernel_mosaics(run.folder, row["step"])
                    pictures = {
                        f"kernels/{layer}": trackio.Image(picture) for layer, picture in mosaics.items()
                    }
                    trackio_run.log(metrics | pictures, step=int(row["step"]))
            trackio_run.finish()

    def _logged_steps(self, name: str) -> set[int]:
        """List the steps that the database has of a run."""
        from trackio.sqlite_storage import SQLiteStorage

        file = SQLiteStorage.get_project_db_path(self._target.project)  # it drops some characters of the name
        if not file.exists():
            return set()
        with contextlib.closing(sqlite3.connect(file)) as database:
            rows = database.execute("SELECT step FROM metrics WHERE run_name = ?", (name,))
            return {int(step) for (step,) in rows}


def show_trackio(results: Path, project: str) -> None:
    """Serve Trackio's dashboard on the loopback interface until it is interrupted."""
    use_trackio(results)
    os.environ.setdefault("TRACKIO_PLOT_ORDER", ",".join(CHARTS))
    import trackio

    trackio.show(project=project, host="127.0.0.1", open_browser=False, block_thread=True)
