"""Images of the user as a stream: the same batches, statistics and trained weights as in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest

from cnnexp.config import RunConfig, parse
from cnnexp.config.data import DataSection
from cnnexp.core.errors import UsageError
from cnnexp.data import array_set
from cnnexp.data.images import Images
from cnnexp.data.loading import add_checksums, load_or_open, read_and_check
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import check_prepared, check_size
from cnnexp.training.loop import StackTrainer
from tests.conftest import SMALL, Configure

COMMON = {key: value for key, value in SMALL["data"].items() if key in DataSection.model_fields}
COMMON |= {"train_size": None, "validation_size": 6, "batch_size": 8, "crop": 1, "pixel_noise": 0.1}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 6, 5, 3)).astype(np.uint8)
LABELS = np.arange(60) % 3
LOADER = """
import numpy as np

def load(kind="memmap"):
    labels = np.arange(60) % 3
    if kind == "several":
        labels = np.stack([labels > 0, labels == 1], 1)
    images = np.load("images.npy", mmap_mode="r" if kind == "memmap" else None)
    return {"images": images, "labels": labels}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder and cache; what other tests have read is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for kept in (array_set._SUMMARIES, array_set._LAST_IMAGES, array_set._LAST_RECORDS):
        kept.clear()
    yield tmp_path
    for kept in (array_set._SUMMARIES, array_set._LAST_IMAGES, array_set._LAST_RECORDS):
        kept.clear()


def write_archive(**arrays: np.ndarray) -> dict[str, Any]:
    np.savez("set.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return {"name": "npz", "path": "set.npz"}


def write_folder(pixels: np.ndarray) -> dict[str, Any]:
    for number, (image, label) in enumerate(zip(pixels, LABELS, strict=True)):
        file = Path(f"set/{label}/{number}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(file), image)
    return {"name": "folder", "path": "set"}


def write_function(pixels: np.ndarray, kind: str) -> dict[str, Any]:
    np.save("images.npy", pixels)
    Path("loader.py").write_text(LOADER, encoding="utf-8")
    return {"name": "custom", "file": "loader.py", "options": {"kind": kind}}


SETS = {
    "npz": lambda: write_archive(images=PIXELS, labels=LABELS),
    "npz of real numbers": lambda: write_archive(images=RNG.normal(5, 0.1, (60, 6, 5)), labels=LABELS),
    "npz of 16 bits in Fortran's order": lambda: write_archive(
        images=np.asfortranarray(PIXELS.astype(np.uint16) * 200), labels=LABELS
    ),
    "npz with a validation split": lambda: write_archive(
        x_train=PIXELS, y_train=LABELS, x_val=PIXELS[::-1], y_val=LABELS[::-1], x_test=PIXELS, y_test=LABELS
    ),
    "folder": lambda: write_folder(PIXELS),
    "folder of 16 bits": lambda: write_folder(PIXELS[..., 0].astype(np.uint16) * 200),
    "custom, mapped": lambda: write_function(PIXELS, "memmap"),
    "custom, several labels": lambda: write_function(PIXELS, "several"),
}


def make_run(
    configure: Configure, keys: dict[str, Any], stream: str, seed: int = 0, stacking: str = "auto"
) -> RunConfig:
    several = keys.get("options") == {"kind": "several"}
    model = {"name": "mlp", "hidden": [], "head": "sigmoid" if several else "softmax"}
    values = {
        **configure(seed=seed, sweep={"stacking": stacking}).model_dump(),
        "model": model,
        "data": {**COMMON, **keys, "stream": stream},
    }
    return add_checksums([parse(values)])[0]


def read(configure: Configure, keys: dict[str, Any]) -> tuple[Images, ImageFiles]:
    files = load_or_open(make_run(configure, keys, "always").data)
    images = load_or_open(make_run(configure, keys, "never").data)
    assert isinstance(images, Images) and isinstance(files, ImageFiles)
    return images, files


@pytest.mark.parametrize("kind", SETS)
def test_a_stream_has_the_images_statistics_and_checksum_of_memory(configure: Configure, kind: str) -> None:
    keys = SETS[kind]()
    streamed = make_run(configure, keys, "always")
    assert not array_set._LAST_IMAGES  # read in pieces
    warnings = read_and_check(streamed.data)
    images, files = read(configure, keys)
    assert streamed.run_id == make_run(configure, keys, "never").run_id
    assert warnings == read_and_check(make_run(configure, keys, "never").data)
    for a, b in zip(images.normalisation, files.normalisation, strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    for split, records in files.records.items():
        pixels = np.asarray(getattr(images, f"{split}_images"))
        order = RNG.permutation(len(records))
        assert records.dtype == pixels.dtype
        assert (records.read(order.tolist())[0] == pixels[order]).all()
        assert (files.labels(split) == getattr(images, f"{split}_labels")).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "stacking"),
    [("npz with a validation split", "vmap"), ("folder", "auto"), ("custom, several labels", "auto")],
)
def test_a_stream_trains_the_weights_of_memory_and_resumes_with_the_next_batch(
    configure: Configure, kind: str, stacking: str
) -> None:
    keys = SETS[kind]()
    runs = {
        stream: [make_run(configure, keys, stream, seed, stacking) for seed in (0, 1)]
        for stream in ("never", "always")
    }
    memory = list(
        StackTrainer(runs["never"][0], load_or_open(runs["never"][0].data), 2).train(runs["never"])
    )[-1]
    trainer, saved = StackTrainer(runs["always"][0], load_or_open(runs["always"][0].data), 2), None
    for state in trainer.train(runs["always"]):
        if state.step == 2:
            saved = jax.tree.map(lambda leaf: leaf.copy(), state.state)
        last = state
    for a, b in zip(jax.tree.leaves(memory.state.params), jax.tree.leaves(last.state.params), strict=True):
        assert (np.asarray(a) == np.asarray(b)).all()
    for a, b in zip(memory.rows or [], last.rows or [], strict=True):
        assert {"validation/loss", "validation/accuracy"} <= a.keys()
        assert a == pytest.approx(b, abs=1e-6)
    assert list(trainer.train(runs["always"], saved))[-1].rows == last.rows


def test_compressed_archives_are_read_into_memory_and_do_not_stream(configure: Configure) -> None:
    np.savez_compressed("set.npz", images=PIXELS, labels=LABELS)
    keys = {"name": "npz", "path": "set.npz"}
    assert isinstance(load_or_open(make_run(configure, keys, "auto").data), Images)
    with pytest.raises(UsageError) as refusal:
        check_prepared(make_run(configure, keys, "always").data)
    assert str(refusal.value) == (
        "data.stream=always: compressed arrays, as in data.path=set.npz, cannot stream; save them with "
        "numpy.savez, uncompressed"
    )


def test_a_corrupt_archive_is_refused_also_where_it_streams(configure: Configure) -> None:
    keys = SETS["npz"]()
    content = bytearray(Path("set.npz").read_bytes())
    content[1000] ^= 1
    Path("set.npz").write_bytes(content)
    for stream in ("always", "never"):
        with pytest.raises(UsageError, match=r"data\.path=set\.npz: the array 'images' cannot be read"):
            make_run(configure, keys, stream)


def test_large_sets_stream_and_are_read_once(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = SETS["folder"]()
    monkeypatch.setattr(array_set, "total_memory", lambda: 3 * PIXELS.nbytes)
    data = make_run(configure, keys, "auto").data
    check_size(data)
    assert not array_set._LAST_IMAGES  # a third of the memory is left to the rest
    assert isinstance(load_or_open(data), Images)  # they fit into the memory of the device
    array_set._SUMMARIES.clear()
    array_set._LAST_RECORDS.clear()
    monkeypatch.setattr(array_set, "check_records", None)  # the checks are in the cache
    assert isinstance(load_or_open(make_run(configure, keys, "always").data), ImageFiles)
    monkeypatch.setattr(array_set, "total_memory", lambda: PIXELS.nbytes // 2)
    array_set._SUMMARIES.clear()
    with pytest.raises(UsageError, match=r"data\.path=set: 60 images need about 5\.4.*B of memory"):
        make_run(configure, keys, "never")
