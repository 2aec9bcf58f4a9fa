"""Claims that were frozen before the first run of a sweep, and the changes to them since.

Whenever a command is about to train runs that no earlier file names, or the claims have changed, a file is
added to the folder `claims` of the sweep; none is ever changed or removed. The name of a file is the hash of
its content, without the date and the number of runs that had ended.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cnnexp.analysis.claims import Claim, describe_range
from cnnexp.analysis.descriptions import describe, hash_values
from cnnexp.analysis.statistics import CONFIDENCE
from cnnexp.core.text import format_ranges, pluralize
from cnnexp.store.files import encode_json, read_json, replace_unprintable, write_once

CLAIMS = "claims"  # the folder of the records
SHORT_HASH = 7  # characters of a claim's hash that a report prints
MAX_NAMED_CHANGES = 3  # of one field of a claim, in a line
ADDED_LATER = ("extend", "added")  # fields that older records lack; they are hashed only where they are set
FIELDS = {"sentence", "estimate"}  # that every claim of a record has
NEVER = "never frozen: no record was made before the first run"


@dataclass(frozen=True, kw_only=True)
class Record:
    """The claims and the runs that a command was about to train.

    Attributes:
        seed_set: The set of seeds, "first" or "confirm".
        size: The size of the experiment: each size is a sweep of its own.
        date: The UTC time, in ISO format.
        ended: The number of runs of this set and size that had ended by then.
        seeds: The seeds of the runs.
        runs: The ids of the runs.
        cells: The hashes of the runs' configurations without the seed.
        protocol: The values of each configuration key, without the seed.
        claims: The claims, see `describe_claim`.
        extend: The number of rounds in which a rule adds values to a cell, see `tune.extend`.
        added: Those of `cells` that the rule has added. They differ only in tuned keys from others.
    """

    seed_set: str
    size: str
    date: str
    ended: int
    seeds: list[int]
    runs: list[str]
    cells: list[str]
    protocol: dict[str, list[str]]
    claims: list[dict[str, Any]]
    extend: int = 0
    added: list[str] = field(default_factory=list)

    @property
    def identity(self) -> str:
        """The hash of all that is frozen."""
        omitted = ("date", "ended", *(name for name in ADDED_LATER if not getattr(self, name)))
        return hash_values({k: v for k, v in asdict(self).items() if k not in omitted})

    def list_changed_cells(self, rounds: int) -> set[str]:
        """List the cells without those that the rule has added, unless it had another number of rounds."""
        return set(self.cells) - set(self.added if self.extend == rounds else ())

    def hash_claim(self, claim: Mapping[str, Any]) -> str:
        """Hash a claim with the protocol and the seeds of this record."""
        rule = {"extend": self.extend} if self.extend else {}
        return hash_values({**claim, **rule, "cells": self.cells, "seeds": self.seeds})[:SHORT_HASH]


def describe_claim(claim: Claim, metric: str | None) -> dict[str, Any]:
    """Describe all that decides the verdict on a claim, by values that JSON can hold.

    Args:
        claim: The claim.
        metric: The metric that takes the place of the accuracy in its experiment, if any does.
    """
    return {
        "sentence": claim.sentence,
        "measured by": claim.quantity,
        "estimate": describe(claim.estimate),
        "expected": describe_range(claim.expected, claim.unit),
        "limits": describe([claim.expected.low, claim.expected.high]),
        "unit": claim.unit,
        "exact": claim.exact,
        "range": describe(claim.range),
        "metric": metric or "the default",
    }


def write_record(folder: Path, record: Record) -> None:
    """Write a record to the folder of a sweep, unless it exists; on return it is safely on disk."""
    write_once(folder / CLAIMS / f"{record.identity}.json", encode_json(asdict(record)))


def read_records(folder: Path, seed_set: str) -> list[Record]:
    """Read the records of a set of seeds of a sweep, oldest first; files that were edited are left out."""
    records = []
    for path in (folder / CLAIMS).glob("*.json"):
        with suppress(ValidationError):
            record = _RECORD.validate_python(read_json(path))
            is_complete = record.claims and all(claim.keys() >= FIELDS for claim in record.claims)
            if is_complete and record.identity == path.stem and record.seed_set == seed_set:
                records.append(record)
    return sorted(records, key=lambda record: (record.date, record.identity))


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True, kw_only=True)
class Freeze:
    """When a claim was frozen, and what has changed since.

    Attributes:
        date: The UTC date; empty where the claim was never frozen.
        short_hash: The first characters of its hash.
        changes: The reasons why the claim is exploratory; empty where its verdict counts.
    """

    date: str = ""
    short_hash: str = ""
    changes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.date} {self.short_hash}" if self.date else "never"


class FrozenClaims:
    """The records of one set of seeds of a sweep, compared with the claims and runs that a report judges.

    Args:
        folder: The folder of the sweep.
        seed_set: The set of seeds.
        runs: The seed of each run that is judged, by its id.
        claims: The claims that are judged.
        metric: The metric by which they are judged, see `describe_claim`.
    """

    def __init__(
        self,
        folder: Path,
        seed_set: str,
        runs: Mapping[str, int],
        claims: Sequence[Claim],
        metric: str | None = None,
    ):
        records = [r for r in read_records(folder, seed_set) if not runs.keys().isdisjoint(r.runs)]
        self.sizes = sorted({record.size for record in records})  # of the experiment; none without a record
        self._records = [[record for record in records if record.size == size] for size in self.sizes]
        self._runs = runs
        self._described = {claim.sentence: describe_claim(claim, metric) for claim in claims}

    @property
    def looks(self) -> int:
        """The number of times that the claims are judged: once, and again each time that seeds were added."""
        return max((1 + len(list(_added_seeds(records))) for records in self._records), default=1)

    @property
    def confidence(self) -> float:
        """The level of the family: the chance of an error is halved for each time that seeds were added."""
        return 1 - (1 - CONFIDENCE) / 2 ** (self.looks - 1)

    def judge_freeze(self, claim: Claim) -> Freeze:
        """Say when a claim was frozen, and what has changed since."""
        if not self._records:
            return Freeze(changes=(NEVER,))
        described = self._described[claim.sentence]
        freezes = [self._compare(records, described) for records in self._records]
        changes = [change for freeze in freezes for change in freeze.changes]
        recorded = {run_id for records in self._records for record in records for run_id in record.runs}
        if strays := len(self._runs.keys() - recorded):
            changes.append(f"{pluralize(strays, 'run')} of {len(self._runs):,} in no record")
        first = min(freezes, key=lambda freeze: freeze.date or "~")
        return Freeze(date=first.date, short_hash=first.short_hash, changes=tuple(dict.fromkeys(changes)))

    def describe_added_seeds(self) -> list[str]:
        """State which seeds were added after results had been seen, in one sentence each."""
        return [
            f"Seeds {format_ranges(seeds)} were added on {replace_unprintable(record.date[:10])}, after "
            f"{pluralize(record.ended, 'run')} had ended; claims are judged at {100 * self.confidence:g}%."
            for records in self._records
            for record, seeds in _added_seeds(records)
        ]

    def list_dropped(self) -> list[str]:
        """List the sentences of claims that were frozen and are no longer judged."""
        dropped = [
            claim["sentence"]
            for records in self._records
            for claim in records[0].claims
            if self._find(self._described.values(), claim) is None
        ]
        return replace_unprintable(list(dict.fromkeys(dropped)))

    def _compare(self, records: Sequence[Record], described: Mapping[str, Any]) -> Freeze:
        """Compare a claim with the records of one size."""
        start, changes = records[0], []
        if start.ended:
            changes.append(f"frozen after {_describe_ended(start.ended)}")
        if (claim := self._find(start.claims, described)) is None:
            later = next((r for r in records if described in r.claims), None)
            changes.append(f"added after {_describe_ended(later.ended if later else len(self._runs))}")
        else:
            changes += _list_changes(claim, described)
        changes += _list_protocol_changes(records)
        planned = _planned_seeds(records)
        of_size = {run_id for record in records for run_id in record.runs}
        judged = {seed for run_id, seed in self._runs.items() if run_id in of_size}
        if planned - judged:
            changes.append(f"seeds {format_ranges(planned)} -> {format_ranges(judged)}")
        return Freeze(
            date=replace_unprintable(start.date[:10]) if claim else "",
            short_hash=start.hash_claim(claim) if claim else "",
            changes=tuple(changes),
        )

    def _find(
        self, claims: Collection[Mapping[str, Any]], described: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Find a claim by its sentence; if its sentence changed, by its estimate."""
        for claim in claims:
            if claim["sentence"] == described["sentence"]:
                return claim
        others = [claim for claim in claims if claim["sentence"] not in self._described]
        frozen_elsewhere = described["sentence"] not in self._described
        candidates = list(claims) if frozen_elsewhere else others
        same = [claim for claim in candidates if claim["estimate"] == described["estimate"]]
        return same[0] if len(same) == 1 else None


def _describe_ended(number: int) -> str:
    return f"{pluralize(number, 'run')} had ended" if number else "the first run had started"


def _planned_seeds(records: Sequence[Record]) -> set[int]:
    """Return the seeds that were recorded before any run had ended: parts of a sweep may start apart."""
    return set(records[0].seeds).union(*(record.seeds for record in records if not record.ended))


def _added_seeds(records: Sequence[Record]) -> Iterator[tuple[Record, set[int]]]:
    """Yield the records that added seeds after runs had ended, with these seeds."""
    known = _planned_seeds(records)
    for record in records[1:]:
        if new := set(record.seeds) - known:
            yield record, new
            known |= new


def _list_changes(frozen: Mapping[str, Any], described: Mapping[str, Any]) -> list[str]:
    """List the fields of a claim that differ from the frozen ones, as `field: old -> new`."""
    changes = []
    for name in described:
        if frozen.get(name) == described[name] or name == "limits":
            continue
        if name == "sentence":
            changes.append(f"sentence, which was {frozen['sentence']!r}")
            continue
        old, new = _flatten(frozen.get(name)), _flatten(described[name])
        keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
        for key in keys[:MAX_NAMED_CHANGES]:
            changes.append(f"{f'{name} {key}'.strip()}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}")
        if len(keys) > MAX_NAMED_CHANGES:
            changes.append(f"{name}: {len(keys) - MAX_NAMED_CHANGES} more")
    return changes


def _list_protocol_changes(records: Sequence[Record]) -> list[str]:
    """Describe the configurations that were added after runs had ended, by the keys with new values."""
    planned = [record for record in records if not record.ended] or [records[0]]
    cells = set().union(*(record.cells for record in planned))
    rounds = planned[-1].extend
    later = [record for record in records if record.list_changed_cells(rounds) - cells]
    if not later:
        return []
    old, new = (_merge_protocols(part) for part in (planned, [*planned, *later]))
    old["tune.extend"], new["tune.extend"] = [str(rounds)], [str(later[-1].extend)]
    keys = [key for key in new if old.get(key) != new[key]]
    texts = [f"{key} {', '.join(old.get(key, ['absent']))} -> {', '.join(new[key])}" for key in keys]
    number = len(cells.union(*(record.cells for record in later)))
    shown = "; ".join(texts[:MAX_NAMED_CHANGES]) + ("; …" if len(texts) > MAX_NAMED_CHANGES else "")
    return [f"protocol: {shown or f'{len(cells)} -> {number} cells'}"]


def _merge_protocols(records: Sequence[Record]) -> dict[str, list[str]]:
    merged: dict[str, list[str]] = {}
    for record in records:
        for key, values in record.protocol.items():
            merged[key] = list(dict.fromkeys([*merged.get(key, []), *values]))
    return merged


def _flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Flatten nested values into texts by dotted key."""
    if isinstance(value, Mapping | list) and value:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {
            key: text
            for name, inner in pairs
            for key, text in _flatten(inner, f"{prefix}.{name}".lstrip(".")).items()
        }
    return {prefix: str(value)}
