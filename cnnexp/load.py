"""Finished runs and sweeps in a notebook: their numbers, trained networks and images, read when asked for.

Example usage::

    import cnnexp

    run = cnnexp.load_run("results/default/3f2a9c0b1d4e")
    images = run.data()
    accuracy = (run.network()(images.test_images).argmax(-1) == images.test_labels).mean()
    table = cnnexp.load_sweep("results/default")
"""

import os
import re
import shlex
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from cnnexp.analysis.dataframe import make_dataframe, read_finished_runs, warn_excluded_runs
from cnnexp.config import CODE_KEYS, RunConfig, list_code, parse
from cnnexp.core.errors import UsageError
from cnnexp.core.user_code import check_stored_code, replace_source
from cnnexp.data.arrangement import draw_strengths
from cnnexp.data.corruptions import Corruptions
from cnnexp.data.images import Images
from cnnexp.data.loading import draw_run_split, load_images, resolve_split_seed
from cnnexp.data.pipelines import InMemory
from cnnexp.data.sampling import split_run_key
from cnnexp.data.shapes import infer_shape
from cnnexp.models.spec import specify_network
from cnnexp.store.files import read_bytes, read_json
from cnnexp.store.measurements import Hits, read_hits
from cnnexp.store.runs import (
    CONFIG,
    ENDED,
    HITS,
    STATUS,
    WEIGHTS,
    StoredRun,
    describe_corrupt_file,
    find_corrupt_files,
    read_commands,
    read_run,
)
from cnnexp.store.weights import Weights, decode_weights
from cnnexp.training.pruning import select_masks
from cnnexp.training.setup import load_network, make_setup

IMAGES_AT_ONCE = 1024  # that are normalised and corrupted


class RunImages(NamedTuple):
    """The images of a run as its network sees them: normalised, corrupted, without augmentation.

    Labels are those that the run was trained on and measured with: class numbers `(n,)`, or 0 and 1 for each
    class `(n, classes)`.
    """

    train_images: jax.Array
    train_labels: jax.Array
    validation_images: jax.Array
    validation_labels: jax.Array
    test_images: jax.Array
    test_labels: jax.Array


class LoadedRun:
    """A run of the store. Everything is read from its folder when it is asked for.

    Args:
        folder: The folder of the run.
        code: Files or modules of the user that replace those of the same name in the configuration, and
            are executed whatever their checksum.
    """

    def __init__(self, folder: Path, code: Sequence[str] = ()):
        self.folder = folder
        self.code = code

    def __repr__(self) -> str:
        return f"LoadedRun({str(self.folder)!r})"

    @cached_property
    def _stored(self) -> StoredRun:
        for path in find_corrupt_files(self.folder):
            raise UsageError(f"{describe_corrupt_file(path)}; run the sweep again to train this run again")
        return read_run(self.folder)

    @property
    def run_id(self) -> str:
        """The id of the run, which is the name of its folder."""
        return self._stored.run_id

    @property
    def status(self) -> str:
        """The status: `finished`, `diverged`, `running`, `interrupted` or `failed`."""
        return self._stored.status

    @cached_property
    def config(self) -> RunConfig:
        """The configuration."""
        return parse(self._stored.config, stored=True)

    @property
    def summary(self) -> dict[str, Any]:
        """The last metrics, the counts, and the versions that produced them; empty until the run ended."""
        return self._stored.summary

    @property
    def history(self) -> pd.DataFrame:
        """The evaluations: one row per evaluation, one column per metric."""
        return pd.DataFrame(self._stored.history)

    def permit_code(self, *sections: str) -> RunConfig:
        """Return the configuration, with all code of the user in some sections allowed to be executed.

        Args:
            *sections: The names of the sections; all that may name code if none is given.

        Raises:
            UsageError: They name code that is not the user's own, or has changed, see `check_stored_code`.
        """
        config = self.config
        for name in sections or CODE_KEYS:
            section = getattr(config, name)
            changes: dict[str, Any] = {}
            for checksum_key in CODE_KEYS[name]:
                code = list_code(name, checksum_key, section.model_dump())
                replaced = {path: replace_source(path, self.code) for _, path in code}
                foreign = [(key, path) for key, path in code if replaced[path] is None]
                if foreign:
                    check_stored_code(foreign, getattr(section, checksum_key), self.folder.parent)
                for key, path in code:
                    if replacement := replaced[path]:
                        field = key.partition(".")[2]
                        names = changes.get(field, getattr(section, field))
                        is_list = isinstance(names, list)
                        changes[field] = (
                            [replacement if item == path else item for item in names]
                            if is_list
                            else replacement
                        )
            config = config.model_copy(update={name: section.model_copy(update=changes)})
        return config

    def weights(self) -> Weights:
        """Read the stored weights.

        Raises:
            UsageError: The run has none, or they are corrupt.
        """
        path = self.folder / WEIGHTS
        content = read_bytes(path)
        if content is None:
            raise UsageError(f"{path}: no weights are stored; {self._training_advice()}")
        checksums = read_json(self.folder / STATUS).get("crc32")
        checksum = checksums.get(WEIGHTS) if isinstance(checksums, dict) else None
        decoded = decode_weights(content)
        if decoded is None or checksum != zlib.crc32(content) or decoded[0] != self.folder.name:
            raise UsageError(f"corrupt file {path} (checksum mismatch); {self._training_advice()}")
        return decoded[1]

    def hits(self) -> Hits:
        """Read which test images the trained network classifies correctly after the last step.

        Raises:
            UsageError: The run has not stored them, or they are corrupt.
        """
        hits = read_hits(self.folder)
        if hits is None:
            raise UsageError(f"{self.folder / HITS}: no hits are stored, or they are corrupt")
        return hits

    def network(self) -> Any:
        """Build the trained network, in evaluation mode: a `TiedNetwork`, or the module of a custom model.

        It takes normalised images `(b, h, w, c)`, such as those of `data`, and returns logits.

        Raises:
            UsageError: The run has no weights, they are corrupt or those of another network, or the network
                is made by code that may not be executed, see `permit_code`.
        """
        config = self.permit_code("model")
        try:
            return load_network(make_setup(config), self.weights().arrays)
        except ValueError as error:
            raise UsageError(f"{self.folder / WEIGHTS}: not of this network: {error}") from None

    def masks(self) -> dict[str, np.ndarray]:
        """Return which weights survived the pruning of the run, by the names of the arrays that were pruned.

        Raises:
            UsageError: The run has no weights, or they are corrupt.
        """
        config = self.permit_code("model")
        return select_masks(self.weights().arrays, config, specify_network(config))

    def data(self) -> RunImages:
        """Load the images that the run was trained on and measured with, in memory.

        Raises:
            UsageError: The data set is not prepared, one of its files is corrupt, or it is made by code that
                may not be executed, see `permit_code`.
        """
        config = self.permit_code("data")
        return draw_images(config, load_images(config.images))

    def _training_advice(self) -> str:
        """Say which commands train the run again so that its weights are stored."""
        if self.status not in ENDED:
            return f"the run has not ended (status: {self.status})"
        remove = f"rm -r {shlex.quote(os.fspath(self.folder))}"
        return f"to train the run again with its weights: {' && '.join([remove, *self._commands()])}"

    def _commands(self) -> Iterator[str]:
        for command in read_commands(self.folder.parent) or ["cnnexp run …"]:
            yield f"{re.sub(r' train[.]keep=[a-z]+', '', command)} train.keep=last"


def load_run(path: str | os.PathLike[str], *, code: str | Sequence[str] = ()) -> LoadedRun:
    """Open a run of the store.

    Args:
        path: The folder of the run, such as `results/default/3f2a9c0b1d4e`.
        code: A file such as `my_net.py`, or several, that the run may execute. Without it, a run executes
            only files of the working folder and installed modules that are the same as in its training.

    Returns:
        The run; its configuration, history, summary, network and images are read when they are asked for.

    Raises:
        UsageError: The folder holds no run.
    """
    folder = Path(path).expanduser()
    if not any((folder / name).exists() for name in (CONFIG, STATUS)):
        reason = "holds no run" if folder.is_dir() else "no such folder"
        raise UsageError(f"{folder}: {reason}; a run is a folder RESULTS/SWEEP/RUN")
    folder = folder.resolve() if folder.name in ("", "..") else folder
    return LoadedRun(folder, (code,) if isinstance(code, str) else tuple(code))


def load_sweep(path: str | os.PathLike[str], *, evaluations: bool = False) -> pd.DataFrame:
    """Read the finished runs of a sweep as a dataframe: one row per run.

    Its columns are those of `cnnexp.analysis.dataframe.make_dataframe`. Runs that have not finished or are
    corrupt are left out, and named on stderr; those of a pilot (`seeds=pilot`) are left out as well.

    Args:
        path: The folder of the sweep, such as `results/default`.
        evaluations: Whether to add the rows of `cnnexp eval`, which the column `evaluation` tells apart.

    Raises:
        UsageError: There is no such sweep, or none of its runs has finished.
    """
    runs, corrupt = read_finished_runs(Path(path).expanduser())
    warn_excluded_runs(runs, corrupt)
    return make_dataframe(runs, evaluations=evaluations)


def draw_test_images(config: RunConfig, images: Images, number: int) -> jax.Array:
    """Return the first test images as the network of a run sees them."""
    indices = np.arange(min(number, len(images.test_labels)), dtype=np.int32)
    source = InMemory(images, indices, np.asarray(len(indices), np.int32), indices)
    return _corrupt(_make_corruptions(config, images), source, "test", indices, classes=1)[0]


def draw_images(config: RunConfig, images: Images) -> RunImages:
    """Draw the images of a run from its data set, and normalise and corrupt them as its network sees them.

    Args:
        config: The configuration of the run.
        images: The data set, in memory.
    """
    split = draw_run_split(images, config.data, resolve_split_seed(config))
    size = config.data.train_size or len(split.order)
    source = InMemory(images, split.order, np.asarray(size, np.int32), split.validation)
    corruptions = _make_corruptions(config, images)
    classes = infer_shape(config.data).classes
    indices_of_split = {
        "train": split.order[:size],
        "validation": split.validation,
        "test": np.arange(len(images.test_labels), dtype=np.int32),
    }
    arrays: list[jax.Array] = []
    for name, indices in indices_of_split.items():
        batches = [
            _corrupt(corruptions, source, name, indices[start : start + IMAGES_AT_ONCE], classes)
            for start in range(0, max(1, len(indices)), IMAGES_AT_ONCE)
        ]
        arrays += [jnp.concatenate(leaves) for leaves in zip(*batches, strict=True)]
    return RunImages(*arrays)


def _make_corruptions(config: RunConfig, images: Images) -> Corruptions:
    return Corruptions(
        config.data,
        split_run_key(jax.random.key(config.seed)).noise,
        draw_strengths(config, images),
        images.normalisation,
    )


def _corrupt(
    corruptions: Corruptions, source: InMemory, split: str, indices: np.ndarray, classes: int
) -> tuple[jax.Array, jax.Array]:
    """Return images of a split and their labels as `cnnexp.training.setup.corrupt_batch` does."""
    batch = source.batch(split, jnp.asarray(indices))
    corrupted_as = "test" if split == "test" else "train"
    pixels = corruptions.images(batch.pixels, batch.image_ids, split=corrupted_as, step=None, first=0)
    labels = jnp.asarray(batch.labels)
    if split == "train":
        labels = corruptions.labels(labels, batch.image_ids, classes)
    return pixels, labels
