"""Resolving splits in the syntax of TFDS, such as `train[:80%]`, into ranges of images."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from cnnexp.core.errors import UsageError, nearest_name, suggestion

SYNTAX = "NAME, NAME[:80%], NAME[1000:], NAME[-1000:], NAME[:2shard], all, and sums of them with +"


class Part(NamedTuple):
    """The images `start` to `stop - 1` of a split, in the order of its files."""

    split: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.split}[{self.start}:{self.stop}]"

    def overlap(self, other: "Part") -> "Part | None":
        """Return the images that are in both parts, or None."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Part(self.split, start, stop) if self.split == other.split and start < stop else None


def resolve_split(split: str, shard_lengths: Mapping[str, Sequence[int]], name: str, key: str) -> list[Part]:
    """Resolve a split by the rules of TFDS, which also decide how percentages are rounded.

    Args:
        split: The specification, such as `train[:80%]+test`.
        shard_lengths: The number of images in each file, by the names of the existing splits.
        name: The name of the set, for errors.
        key: The configuration key that holds the specification, for errors.

    Raises:
        UsageError: The specification is not in the syntax of TFDS, or it selects a split that does not exist,
            images beyond the end, no images, or an image twice.
    """
    sizes = {split_name: sum(lengths) for split_name, lengths in shard_lengths.items()}
    parts = (
        [Part(split, 0, sizes[split])] if split in sizes else _resolve_parts(split, shard_lengths, name, key)
    )
    for part in parts:
        if part.start >= part.stop:
            raise UsageError(f"{key}={split}: selects no images; {_list_sizes(name, sizes)}")
    if overlap := _first_overlap(combinations(parts, 2)):
        raise UsageError(f"{key}={split}: selects {overlap} twice; name every image once")
    return parts


def check_disjoint(train: Sequence[Part], test: Sequence[Part], train_split: str, test_split: str) -> None:
    """Check that no image is used for both training and testing.

    Args:
        train: The training images.
        test: The test images.
        train_split: The specification of the training images, for errors.
        test_split: The specification of the test images, for errors.

    Raises:
        UsageError: The parts overlap; the message names the overlap, and how to hold a part out.
    """
    if overlap := _first_overlap(product(train, test)):
        raise UsageError(
            f"data.test_split={test_split}: overlaps data.train_split={train_split} in {overlap}; "
            f"{_advise_holding_out(overlap.split)}"
        )


def _resolve_parts(split: str, shard_lengths: Mapping[str, Sequence[int]], name: str, key: str) -> list[Part]:
    """Resolve a specification with TFDS itself; see `resolve_split` for the arguments."""
    import tensorflow_datasets as tfds

    sizes = {split_name: sum(lengths) for split_name, lengths in shard_lengths.items()}
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, NotImplementedError):
        raise UsageError(f"{key}={split}: must be a split in the syntax of TFDS: {SYNTAX}") from None
    for part in split.split("+"):
        if (split_name := part.partition("[")[0].strip()) not in {*sizes, "all"}:
            raise UsageError(f"{key}={split}: {_describe_unknown_split(split_name, list(sizes), name, key)}")
    infos = [
        tfds.core.SplitInfo(name=split_name, shard_lengths=list(lengths), num_bytes=0)
        for split_name, lengths in shard_lengths.items()
    ]
    try:
        ranges = instruction.to_absolute(tfds.core.SplitDict(infos))
    except ValueError:
        raise UsageError(
            f"{key}={split}: reaches beyond the last image; {_list_sizes(name, sizes)}"
        ) from None
    return [
        Part(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in ranges
    ]


def _describe_unknown_split(split: str, splits: Sequence[str], name: str, key: str) -> str:
    message = f"{name} has no split {split!r}; {suggestion(split, splits)}"
    if key == "data.test_split" and nearest_name(split, splits) is None:
        message += f"; or {_advise_holding_out('train' if 'train' in splits else splits[0])}"
    return message


def _advise_holding_out(split: str) -> str:
    return f"hold a part out: data.train_split='{split}[:80%]' data.test_split='{split}[80%:]'"


def _list_sizes(name: str, sizes: Mapping[str, int]) -> str:
    return f"{name} has {', '.join(f'{size} images in {split}' for split, size in sizes.items())}"


def _first_overlap(pairs: Iterable[tuple[Part, Part]]) -> Part | None:
    return next((overlap for a, b in pairs if (overlap := a.overlap(b))), None)
