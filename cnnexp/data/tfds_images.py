"""Image sets of TensorFlow Datasets: prepared once, read ever after without TensorFlow."""

import hashlib
import importlib.util
import logging
import os
from pathlib import Path

import numpy as np

from cnnexp.data.arrays import Images, images_of
from cnnexp.errors import UsageError

READ_BATCH = 2048  # one call for many records: reading one by one takes more than twice as long


def data_dir_of(data_dir: str | None) -> Path:
    """The folder of prepared sets: as given, `$TFDS_DATA_DIR`, or TFDS's default."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared_version(name: str, data_dir: str | None) -> Path:
    """The folder of the newest prepared version.

    Raises:
        UsageError: there is none; the message says what to type.
    """
    folder = data_dir_of(data_dir)
    versions = sorted(folder.glob(f"{name}/*/dataset_info.json"))
    if not versions:
        raise UsageError(
            f"data.name={name}: not prepared in {folder}; type: cnnexp data prepare {name} "
            "(with --from DIR where its files are already downloaded)"
        )
    return versions[-1].parent


def load_prepared(name: str, data_dir: str | None) -> Images:
    """Read a prepared set; after the first time from a cache, which is some twenty times faster.

    Raises:
        UsageError: the set is not prepared, or not in a format of random access.
    """
    version = prepared_version(name, data_dir)
    cache = _cache_file(name, version)
    if not cache.exists():
        arrays = [array for split in ("train", "test") for array in _read_split(version, split)]
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}.npz")
        np.savez(partial, *arrays)
        partial.replace(cache)
    with np.load(cache) as stored:
        return images_of(*(stored[f"arr_{index}"] for index in range(4)))


def prepare(name: str, source: Path | None, data_dir: str | None) -> Path:
    """Prepare a set with its own TFDS builder, which checks the checksums of what it reads.

    Args:
        name: the builder's name.
        source: a folder with the published files already downloaded; None downloads them.
        data_dir: where to; see `data_dir_of`.

    Raises:
        UsageError: TensorFlow is missing, or a file in `source` is.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UsageError(f"preparing {name} needs TensorFlow; type: pip install 'cnnexp[tfds]'")
    if source is not None and not source.is_dir():
        raise UsageError(f"--from {source}: no such folder")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow_datasets as tfds

    builder = tfds.builder(name, data_dir=data_dir_of(data_dir), file_format="array_record")
    if source is not None:
        wanted = [Path(url).name for url in builder.url_infos or ()]
        missing = [file for file in wanted if not (source / file).exists()]
        if missing:
            raise UsageError(f"--from {source}: {missing[0]} is not there; {name} needs {', '.join(wanted)}")
    config = tfds.download.DownloadConfig(manual_dir=source) if source else None
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_path)


def _cache_file(name: str, version: Path) -> Path:
    from platformdirs import user_cache_path

    # The info file holds the checksum-derived sizes of every shard: another preparation, another digest.
    stamp = (version / "dataset_info.json").read_bytes() + str(version.resolve()).encode()
    digest = hashlib.sha256(stamp).hexdigest()[:12]
    return user_cache_path("cnnexp") / "datasets" / f"{name}-{version.name}-{digest}.npz"


def _read_split(version: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(version))
    try:
        source = builder.as_data_source(split)  # pyright: ignore[reportCallIssue]
    except NotImplementedError:
        raise UsageError(
            f"{version}: prepared as {builder.info.file_format}, which needs TensorFlow to read; prepare it "
            "again in another folder with: cnnexp data prepare NAME --data-dir DIR"
        ) from None
    logging.getLogger("absl").setLevel(logging.ERROR)  # it recommends OpenCV over Pillow at every read
    images, labels = [], []
    for start in range(0, len(source), READ_BATCH):
        records = source.__getitems__(list(range(start, min(start + READ_BATCH, len(source)))))
        images.append(np.stack([record["image"] for record in records]))
        labels.append(np.stack([record["label"] for record in records]))
    return np.concatenate(images), np.concatenate(labels)
