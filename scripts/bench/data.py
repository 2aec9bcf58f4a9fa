#!/usr/bin/env python3
"""Images per second that reach the device: from memory, streamed by Grain, and from a plain tf.data pipeline.

    scripts/bench/data.py [--data-dir DIR] [--name fashion_mnist] [--batch 128]

Also the seconds and the memory that loading takes, the first time and from the cache. All pipelines give
shuffled, normalised float32 batches on the device. tf.data reads the same records, from a TFRecord file;
it is left out where TensorFlow is not installed (extra: tfds).
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import benching
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cnnexp.config.datasets import TFDSImages
from cnnexp.data.datasets.tfds import TFDSSet
from cnnexp.data.images import Images
from cnnexp.data.sampling import batch_indices, draw_order
from cnnexp.data.shapes import infer_shape
from cnnexp.data.tfds.records import Records

STEPS = 100  # batches of one timing
LOAD = """
import sys, time, psutil
from cnnexp.data.datasets.tfds import TFDSSet
from scripts_bench_data import section
started, before = time.perf_counter(), psutil.Process().memory_info().rss
images = TFDSSet(section(sys.argv[1], sys.argv[2] or None)).load()
print(time.perf_counter() - started, (psutil.Process().memory_info().rss - before) / 1e6,
      (images.train_images.nbytes + images.test_images.nbytes) / 1e6)
"""


def section(name: str, data_dir: str | None) -> TFDSImages:
    """Return the unchanged data section of a set."""
    levels = {"resolution": None, "image_noise": 0.0, "shift": 0, "permutation": "none", "block": 1}
    noise = {"pixel_noise": 0.0, "salt_and_pepper": 0.0, "label_noise": 0.0, "crop": 0, "flip": False}
    sizes = {"train_size": None, "validation_size": 0, "split_seed": None, "batch_size": 128}
    where = {"data_dir": data_dir, "train_split": "train", "test_split": "test", "size": None}
    how = {"stream": "auto", "corrupt": "both"}
    return TFDSImages.model_validate({"name": name, **levels, **noise, **sizes, **where, **how})


def print_loading(name: str, data_dir: str | None) -> None:
    """Print the seconds and memory of loading in separate processes: first read, then from the cache."""
    with tempfile.TemporaryDirectory() as cache:
        module = Path(cache) / "scripts_bench_data.py"
        module.symlink_to(Path(__file__).resolve())
        path = os.pathsep.join([cache, str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": path}
        for what in ("read and checked", "from the cache"):
            arguments = [sys.executable, "-c", LOAD, name, data_dir or ""]
            output = subprocess.run(arguments, env=environment, check=True, capture_output=True, text=True)
            seconds, grown, images = map(float, output.stdout.split())
            print(f"load {name}, {what:18} {seconds:6.2f} s, {grown:6.1f} MB for {images:.1f} MB of images")


def memory_pipeline(found: TFDSSet, size: int) -> Callable[[], object]:
    """Make one compiled loop over batches in device memory; it returns their sum, to keep them alive."""
    images = jax.device_put(found.load())
    assert isinstance(images, Images)

    @jax.jit
    def run(images: Images, first: Any) -> Any:
        count, order = jnp.int32(len(images.train_images)), draw_order(jax.random.key(0))

        def step(number: Any, total: Any) -> Any:
            chosen = batch_indices(order, first + number, batch_size=size, train_size=count)
            batch = images.normalisation.normalise(images.train_images[chosen].astype(jnp.float32))
            return total + lax.optimization_barrier(batch)[..., :1].sum()

        return lax.fori_loop(0, STEPS, step, jnp.float32(0))

    return lambda: run(images, jnp.int32(0))


def stream_pipeline(found: TFDSSet, size: int) -> Callable[[], object]:
    """Read batches ahead with Grain, put them on the device and normalise them there."""
    files = found.open_files()
    order = np.random.default_rng(0).permutation(len(files.train_labels)).astype(np.int32)
    normalise = jax.jit(lambda pixels: files.normalisation.normalise(pixels.astype(jnp.float32)))

    def places(number: int) -> np.ndarray:
        return order[np.arange(number * size, (number + 1) * size) % len(order)]

    def run() -> object:
        batch = None
        for _, pixels in files.batches("train", places, 0, STEPS):
            batch = normalise(pixels)
        return batch

    return run


def tf_data_pipeline(found: TFDSSet, size: int, file: Path) -> Callable[[], object]:
    """Make the pipeline that a TFDS user writes: records, shuffled, parsed, decoded, batched, prefetched."""
    import tensorflow as tf  # pyright: ignore

    records = found.open_files().records["train"]
    assert isinstance(records, Records)
    with tf.io.TFRecordWriter(str(file)) as writer:
        for record in records.raw(range(len(records))):
            writer.write(record)
    features = {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}
    shape = found.shape.image

    def parse(record: Any) -> Any:
        example = tf.io.parse_single_example(record, features)
        return tf.reshape(tf.io.decode_png(example["image"], channels=shape[-1]), shape), example["label"]

    batches = (
        tf.data.TFRecordDataset(str(file))
        .repeat()
        .shuffle(10_000, seed=0)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(size)
        .prefetch(tf.data.AUTOTUNE)
    )
    normalise = jax.jit(lambda pixels: (pixels.astype(jnp.float32) - 72.9) / 90.0)
    feed: Iterator[Any] = batches.as_numpy_iterator()  # goes on from timing to timing, its buffer filled

    def run() -> object:
        batch = None
        for pixels, _ in islice(feed, STEPS):
            batch = normalise(pixels)
        return batch

    return run


def main() -> None:
    """Print the loading times, then the images per second as medians of alternating repetitions."""
    options = benching.parser(__doc__)
    options.add_argument("--name", default="fashion_mnist")
    options.add_argument("--data-dir")
    options.add_argument("--batch", type=int, default=128)
    arguments = options.parse_args()
    print_loading(arguments.name, arguments.data_dir)
    data = section(arguments.name, arguments.data_dir)
    found = TFDSSet(data)
    with tempfile.TemporaryDirectory() as folder:
        pipelines = {
            "in memory": memory_pipeline(found, arguments.batch),
            "streamed by Grain": stream_pipeline(found, arguments.batch),
        }
        if find_spec("tensorflow") is not None:
            pipelines["tf.data"] = tf_data_pipeline(found, arguments.batch, Path(folder) / "records")
        times: dict[str, list[float]] = {name: [] for name in pipelines}
        for turn in range(arguments.repeats + 1):
            for name, run in pipelines.items():
                started = time.perf_counter()
                jax.block_until_ready(run())
                if turn:  # the first compiles
                    times[name].append(time.perf_counter() - started)
    rates = {name: STEPS * arguments.batch / median(seconds) for name, seconds in times.items()}
    for name, rate in rates.items():
        print(f"{name:20} {rate:12,.0f} images/s of {'x'.join(map(str, infer_shape(data).image))}")
    benching.save([{"case": name, "images_per_second": rate} for name, rate in rates.items()], arguments.json)


if __name__ == "__main__":
    main()
