"""The verdicts of a report as a JSON file, from which tables over several data sets are made."""

from pathlib import Path
from typing import NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from cnnexp.analysis.claims import Claim, Expected, Unit
from cnnexp.analysis.statistics import Interval
from cnnexp.analysis.variance import Variances
from cnnexp.analysis.verdicts import Outcome, Verdict
from cnnexp.core.errors import UsageError
from cnnexp.report.report import Report
from cnnexp.store.files import read_json, replace_unprintable


class _Record(BaseModel):
    """Numbers that are infinite or not known are written as text, because JSON has none."""

    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


class VerdictRecord(_Record):
    """What was found about a claim on one set of seeds; the numbers are in units of the estimate.

    Attributes:
        outcome: See `Verdict`; so are all other fields that are not explained here.
        estimate: The mean over seeds; None where the sweep lacks cells.
        interval: The lower and the upper limit, at `confidence`.
        values: The estimate of each seed, in two bounds where one is known only within bounds.
        seeds_variance: The variance of the mean due to the seeds.
        images_variance: The variance due to the draw of the test images; None where it is not known.
        choice_variance: The variance due to the choice of hyperparameters.
        probability: P(A > B) with its interval.
        frozen: The date and the short hash of the frozen claim.
    """

    outcome: Outcome
    exploratory: str
    estimate: float | None
    interval: tuple[float, float] | None
    confidence: float
    family_confidence: float
    seeds: int
    agreeing_seeds: int
    values: list[float] | list[tuple[float, float]]
    seeds_variance: float | None
    images_variance: float | None
    choice_variance: float | None
    probability: Interval | None
    more_seeds: int | None
    frozen: str
    scope: str


class ClaimRecord(_Record):
    """A claim with its verdicts.

    Attributes:
        sentence: See `Claim`; so are all other fields that are not explained here.
        measured_by: What is estimated, in words.
        expected: The limits between which the estimate is expected.
        verdict: On the fresh seeds, where there are any.
        first_verdict: On the first seeds, where `verdict` is on fresh ones.
    """

    sentence: str
    measured_by: str
    unit: Unit
    expected: tuple[float, float]
    exact: bool
    range: tuple[float, float]
    source: str
    published: str
    verdict: VerdictRecord
    first_verdict: VerdictRecord | None


class ReportRecord(_Record):
    """The verdicts of a report, with what a reader must know about its sweep.

    Attributes:
        sweep: The name of the sweep.
        experiment: The name of its experiment.
        question: The title of the report.
        metric: What accuracy stands for, see `choose_metric`.
        seeds: The seeds of `ClaimRecord.verdict`, in words.
        runs: The number of runs, whatever their status.
        training_seconds: The wall time of all of them.
        commands: The commands that made them.
        figures: The captions of the figures, by their names.
        claims: The claims that were measured.
        unmeasured: The sentences of the others.
    """

    sweep: str
    experiment: str
    question: str
    metric: str
    seeds: str
    runs: int
    training_seconds: float
    commands: list[str]
    figures: dict[str, str]
    claims: list[ClaimRecord]
    unmeasured: list[str]


def make_record(report: Report) -> ReportRecord:
    """Make the record of a report."""
    first: list[Verdict | None] = list(report.first_verdicts) or [None] * len(report.verdicts)
    return ReportRecord(
        sweep=report.folder.absolute().parent.name,
        experiment=str(report.table["experiment"].iloc[0]),
        question=report.experiment.question,
        metric=report.metric,
        seeds=report.seeds,
        runs=len(report.runs),
        training_seconds=round(sum(run.summary.get("wall_seconds") or 0.0 for run in report.runs), 1),
        commands=report.commands,
        figures={name: caption for name, (caption, _) in report.figures.items()},
        claims=[_record_claim(*verdicts) for verdicts in zip(report.verdicts, first, strict=True)],
        unmeasured=[claim.sentence for claim in report.unmeasured_claims],
    )


def encode_record(record: ReportRecord) -> str:
    """Encode a record as JSON."""
    return record.model_dump_json(indent=1) + "\n"


def read_record(path: Path) -> ReportRecord:
    """Read the record of a report; text that would control a terminal is replaced.

    Raises:
        UsageError: the file is not such a record.
    """
    try:
        return ReportRecord.model_validate(replace_unprintable(read_json(path)))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UsageError(f"{path}: not the verdicts of a report ({place} is missing or wrong)") from None


def restore_verdicts(claim: ClaimRecord) -> tuple[Verdict, Verdict | None]:
    """Restore the verdict on a claim, and that on the first seeds where the other is on fresh ones.

    The claim can be judged again at another level, but not on other runs: its estimate is not recorded.

    Raises:
        UsageError: no effect at all would support the claim, see `Claim`.
    """
    low, high = claim.expected
    try:
        restored = Claim(
            sentence=claim.sentence,
            source=claim.source,
            estimate=_refuse_estimate,
            quantity=claim.measured_by,
            expected=Expected(low=low, high=high),
            unit=claim.unit,
            exact=claim.exact,
            range=claim.range,
            published=claim.published,
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    first = claim.first_verdict
    return _restore_verdict(restored, claim.verdict), first and _restore_verdict(restored, first)


def _record_claim(verdict: Verdict, first: Verdict | None) -> ClaimRecord:
    claim = verdict.claim
    return ClaimRecord(
        sentence=claim.sentence,
        measured_by=claim.quantity,
        unit=claim.unit,
        expected=(claim.expected.low, claim.expected.high),
        exact=claim.exact,
        range=claim.range,
        source=claim.source,
        published=claim.published,
        verdict=_record_verdict(verdict),
        first_verdict=first and _record_verdict(first),
    )


def _record_verdict(verdict: Verdict) -> VerdictRecord:
    interval, is_known = verdict.interval, all(low == high for low, high in verdict.by_seed)
    return VerdictRecord(
        outcome=verdict.outcome,
        exploratory="" if verdict.claim.exact else verdict.exploratory,
        estimate=interval and interval.value,
        interval=interval and (interval.low, interval.high),
        confidence=verdict.confidence,
        family_confidence=verdict.family_confidence,
        seeds=verdict.seeds,
        agreeing_seeds=verdict.agreeing_seeds,
        values=[low for low, _ in verdict.by_seed] if is_known else list(verdict.by_seed),
        seeds_variance=verdict.variances.seeds,
        images_variance=verdict.variances.images,
        choice_variance=verdict.variances.choice,
        probability=verdict.probability,
        more_seeds=verdict.more_seeds,
        frozen=verdict.frozen,
        scope=verdict.scope,
    )


def _restore_verdict(claim: Claim, record: VerdictRecord) -> Verdict:
    bounds = tuple(value if isinstance(value, tuple) else (value, value) for value in record.values)
    means = [sum(side) / len(bounds) for side in zip(*bounds, strict=True)]
    return Verdict(
        claim=claim,
        outcome=record.outcome,
        interval=Interval(record.estimate, *record.interval)
        if record.estimate is not None and record.interval is not None
        else None,
        confidence=record.confidence,
        family_confidence=record.family_confidence,
        seeds=record.seeds,
        agreeing_seeds=record.agreeing_seeds,
        by_seed=bounds,
        **({"bounds": (means[0], means[1])} if means else {}),
        variances=Variances(
            seeds=record.seeds_variance, images=record.images_variance, choice=record.choice_variance
        ),
        probability=record.probability,
        more_seeds=record.more_seeds,
        exploratory=record.exploratory,
        frozen=record.frozen,
        scope=record.scope,
    )


def _refuse_estimate(_: object) -> NoReturn:
    raise TypeError("the estimate of a recorded claim is not known")
