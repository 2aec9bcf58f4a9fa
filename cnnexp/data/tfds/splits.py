"""Which images of a prepared set a split names: `train`, or TFDS's syntax for parts, as in `train[:80%]`."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from typing import NamedTuple

from cnnexp.core.errors import UsageError, nearest_name, suggestion

SYNTAX = "NAME, NAME[:80%], NAME[1000:], NAME[-1000:], NAME[:2shard], all, and sums of them with +"


class Part(NamedTuple):
    """The images `start` to `stop - 1` of a split, in the order in which its files hold them."""

    split: str
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.split}[{self.start}:{self.stop}]"

    def overlap(self, other: "Part") -> "Part | None":
        """The images that both parts have, if any."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Part(self.split, start, stop) if self.split == other.split and start < stop else None


def resolve_split(split: str, shard_lengths: Mapping[str, Sequence[int]], name: str, key: str) -> list[Part]:
    """Resolve a split by TFDS's own rules, which also say how percentages are rounded.

    Args:
        split: the specification, such as `train[:80%]+test`.
        shard_lengths: the number of images in each file, by the names of the splits that exist.
        name: the set's name, for errors.
        key: the configuration key that holds the specification, for errors.

    Raises:
        UsageError: it is not in TFDS's syntax, or it names a split that does not exist, images beyond the
            end, no images, or images twice.
    """
    sizes = {known: sum(lengths) for known, lengths in shard_lengths.items()}
    parts = [Part(split, 0, sizes[split])] if split in sizes else _resolved(split, shard_lengths, name, key)
    for part in parts:
        if part.start >= part.stop:
            raise UsageError(f"{key}={split}: selects no images; {_there(name, sizes)}")
    if twice := _first_overlap(combinations(parts, 2)):
        raise UsageError(f"{key}={split}: selects {twice} twice; name every image once")
    return parts


def check_disjoint(train: Sequence[Part], test: Sequence[Part], train_split: str, test_split: str) -> None:
    """Refuse to test on images that are trained on.

    Raises:
        UsageError: the parts overlap; the message names the overlap, and how to hold a part out.
    """
    if both := _first_overlap(product(train, test)):
        raise UsageError(
            f"data.test_split={test_split}: overlaps data.train_split={train_split} in {both}; "
            f"{_hold_out(both.split)}"
        )


def _resolved(split: str, shard_lengths: Mapping[str, Sequence[int]], name: str, key: str) -> list[Part]:
    import tensorflow_datasets as tfds

    sizes = {known: sum(lengths) for known, lengths in shard_lengths.items()}
    try:
        instruction = tfds.core.ReadInstruction.from_spec(split)
    except (ValueError, NotImplementedError):
        raise UsageError(f"{key}={split}: not a split in TFDS's syntax; allowed: {SYNTAX}") from None
    for part in split.split("+"):
        if (named := part.partition("[")[0].strip()) not in {*sizes, "all"}:
            raise UsageError(f"{key}={split}: {_unknown(named, list(sizes), name, key)}")
    infos = [
        tfds.core.SplitInfo(name=known, shard_lengths=list(lengths), num_bytes=0)
        for known, lengths in shard_lengths.items()
    ]
    try:
        found = instruction.to_absolute(tfds.core.SplitDict(infos))
    except ValueError:
        raise UsageError(f"{key}={split}: reaches beyond the last image; {_there(name, sizes)}") from None
    return [
        Part(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in found
    ]


def _unknown(named: str, known: Sequence[str], name: str, key: str) -> str:
    message = f"{name} has no split {named!r}; {suggestion(named, known)}"
    if key == "data.test_split" and nearest_name(named, known) is None:
        message += f"; or {_hold_out('train' if 'train' in known else known[0])}"
    return message


def _hold_out(split: str) -> str:
    return f"hold a part out: data.train_split='{split}[:80%]' data.test_split='{split}[80%:]'"


def _there(name: str, sizes: Mapping[str, int]) -> str:
    return f"{name} has {', '.join(f'{size} images in {split}' for split, size in sizes.items())}"


def _first_overlap(pairs: Iterable[tuple[Part, Part]]) -> Part | None:
    return next((both for one, other in pairs if (both := one.overlap(other))), None)
