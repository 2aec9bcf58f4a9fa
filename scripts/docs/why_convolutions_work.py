#!/usr/bin/env python3
"""Write docs/why_convolutions_work.md from the published verdicts in experiments/*.json.

scripts/docs/why_convolutions_work.py    # after cnnexp report NAME --publish experiments
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cnnexp.analysis.claims import format_interval
from cnnexp.analysis.joint import JointClaim
from cnnexp.analysis.tables import markdown_table
from cnnexp.analysis.verdicts import Verdict
from cnnexp.core.text import duration_text, pluralize
from cnnexp.report.joint import JointReport, join_records
from cnnexp.report.records import ReportRecord, read_record

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "why_convolutions_work.md"
EXPERIMENTS = ROOT / "experiments"
WHY, LADDER, KERNELS = "why_convolutions", "locality_sharing_ladder", "kernel_stride_tying"
COLUMNS = {"": "scattered digits", "_medium": "Fashion-MNIST", "_paper": "CIFAR-10"}  # by the end of a name
DATA_NAMES = {"": "digits", "_medium": "fashion_mnist", "_paper": "cifar10"}
NOT_YET, NOT_HERE = "not measured yet", "not measured on these data"
OUTCOMES = ("supported", "refuted", "inconclusive")


@dataclass(frozen=True)
class Section:
    """A sentence of the usual answer in quotation marks, the claims that test it, and a figure."""

    title: str
    claims: dict[str, str]  # the experiment by the claim's sentence
    figure: tuple[str, str]  # the experiment and the name of the figure
    column: str = ""  # the title of the only column, if each experiment has data of its own


SECTIONS = [
    Section(
        "“Convolutions work”: are they more accurate than dense networks?",
        {
            "A convolution is more accurate than a dense network trained on the same images.": WHY,
            "A convolution that has as many MACs as a dense network is more accurate, trained on the same "
            "images.": WHY,
        },
        (WHY, "accuracy_by_images"),
    ),
    Section(
        "“Connections are sparse: each unit sees a small region of the image.”",
        {
            "A sparse network wired at random is more accurate than a dense network: sparsity alone "
            "helps.": WHY,
            "Among sparse networks, one that sees neighbouring pixels is more accurate than one wired at "
            "random.": WHY,
            "Among deep networks, the locally connected network is more accurate than the dense "
            "network.": LADDER,
        },
        (LADDER, "ladders"),
    ),
    Section(
        "“Parameters are shared: the same filter is used everywhere.”",
        {
            "A convolution is more accurate than a locally connected network: sharing helps.": WHY,
            "Sharing improves a network that sees neighbouring pixels more than a network wired at "
            "random.": WHY,
            "A network tiled with period 2 is less than 1 point below a convolution in "
            "accuracy.": "tying_dial",
        },
        ("tying_dial", "accuracy_by_params"),
    ),
    Section(
        "“So there are fewer parameters.”",
        {
            "A convolution has fewer parameters than a dense network of equal width.": WHY,
            "Among networks of equal width, the generalisation gap grows with the number of "
            "parameters.": KERNELS,
            "With equally many parameters, a convolution has a smaller generalisation gap than a locally "
            "connected network.": KERNELS,
        },
        (KERNELS, "by_params"),
    ),
    Section(
        "“Learning is faster.”",
        {
            f"To reach 50% test accuracy, a convolution needs at most half as many {cost} as a dense "
            "network.": WHY
            for cost in ("steps", "MACs")
        },
        (WHY, "learning_curves"),
    ),
    Section(
        "“Fewer training images are needed.”",
        {
            "A convolution needs at most half as many training images as a dense network for the same "
            "accuracy.": WHY,
            "A convolution needs at most 512 training images to match a dense network trained on 1,024.": WHY,
        },
        (WHY, "accuracy_by_images"),
    ),
    Section(
        "“There is less overfitting, in particular to the noise of single pixels.”",
        {
            "A convolution has a smaller generalisation gap than a dense network.": WHY,
            "A convolution that has as many MACs as a dense network has a smaller generalisation gap.": WHY,
            "Pixel noise widens the generalisation gap of a dense network more than that of a "
            "convolution.": WHY,
        },
        (WHY, "accuracy_by_condition"),
    ),
    Section(
        "What the answer takes for granted: neighbouring pixels belong together",
        {
            "Permuting the pixels of all images in the same way costs a convolution more accuracy than a "
            "dense network.": WHY,
            "If the pixels of all images are permuted in the same way, a dense network is more accurate than "
            "a convolution.": "randomisation",
        },
        ("randomisation", "accuracy_by_condition"),
    ),
    Section(
        "What the field has added since: where locality and sharing come from, and what they are worth",
        {
            "On a hierarchy of 3 levels, the exponent with which the number of images needed grows with the "
            "number of places per symbol is more than 0.5 larger for a locally connected network than for a "
            "convolution.": "hierarchy",
            "Hidden units of a dense network are more local after training on images with edges than on "
            "Gaussian clones with the same covariance.": "gaussianity",
            "The masks that iterative magnitude pruning leaves are more local than random masks of the same "
            "density.": "tickets",
            "Rearranging permuted pixels by their correlations gives a convolution back more than a third of "
            "the accuracy that the permutation took.": "unshuffle",
            "Low-pass filters raise the fraction of pairs of shifted images that a convolution with strides "
            "of 2 classifies alike.": "aliasing",
            "For more than half of the teachers, the best student has the tying of its teacher.": "teacher",
            "The lead of a convolution over a dense network with as many MACs shrinks as both become "
            "larger.": "scale",
            "With batch normalisation and shortcuts, a deep locally connected network is more accurate than "
            "a deep dense network.": "normalisation",
        },
        ("hierarchy", "images_by_places"),
        column="tasks made for one question",
    ),
]
SINGLE = {name: section.column for section in SECTIONS if section.column for name in section.claims.values()}
INTRODUCTION = """\
# Why do convolutions work?

The usual answer, as blog posts and courses give it: convolutions work because of **sparsity of connections**
(a unit sees a small region of the image) and **parameter sharing** (the same filter is used everywhere). This
means fewer parameters, faster learning, fewer training images and less overfitting to the noise of pixels.
The page takes the answer sentence by sentence and says what was measured for each, on images whose content
lies anywhere (*scattered digits* on a small canvas) and on images that are centred (the clothes of
*Fashion-MNIST*). Where the two disagree, read their columns and not the mean.

A claim is *supported* if the whole interval of its effect lies in the expected range, *refuted* if the whole
interval lies outside it, and *inconclusive* otherwise. An effect in the right direction that is smaller than
the smallest effect that matters refutes it, too. Claims were written down before the first run; a verdict
is *exploratory*, and does not count, if its claim was changed afterwards (the reports say what changed). A
*count* is true by construction and proves nothing about learning. *Gap* is training minus test accuracy.
"""
FAMILY = """
The {verdicts} of this page, the means included, are one family: Holm's method corrects their intervals, so
that with {level:g}% confidence no claim is wrongly supported or refuted. A claim can therefore be
inconclusive here and decided in its report.
"""
ENDING = """\
A verdict holds for these data, small networks and lengths of training. See how
[intervals and verdicts are computed](statistics.md), and [all experiments](../experiments/README.md).
`scripts/docs/why_convolutions_work.py` generates this page from `experiments/*.json`.
"""


def _read_published(folder: Path) -> dict[str, ReportRecord]:
    experiments = sorted({name for section in SECTIONS for name in section.claims.values()})
    names = [f"{name}{size}" for name in experiments for size in COLUMNS]
    paths = [folder / f"{name}.json" for name in names]
    return {path.stem: read_record(path) for path in paths if path.exists()}


def render_page(folder: Path) -> str:
    """Render the page from a folder of published reports."""
    records = _read_published(folder)
    experiments = {sentence: name for section in SECTIONS for sentence, name in section.claims.items()}
    joint = join_records([_select_claims(record, experiments) for record in records.values()])
    claims = {claim.sentence: claim for claim in joint.claims}
    sizes = [size for size in COLUMNS if size != "_paper" or any(name.endswith(size) for name in records)]
    blocks = [INTRODUCTION, f"{_summarize(list(claims.values()))}\n", *render_figure(folder)]
    for number, section in enumerate(SECTIONS, 1):
        blocks += [
            f"## {number}. {section.title}\n",
            f"{_describe_result([claims[name] for name in section.claims if name in claims])}"
            f"{_link_figures(folder, *section.figure)}\n",
            render_table(section, sizes, records, claims) + "\n",
        ]
    sources = describe_sources(folder, records, joint)
    return "\n".join([*blocks, "## Where the numbers come from\n", *sources, ENDING])


def _select_claims(record: ReportRecord, experiments: dict[str, str]) -> ReportRecord:
    claims = [claim for claim in record.claims if experiments.get(claim.sentence) == record.experiment]
    return record.model_copy(update={"claims": claims})


def _list_judged(claims: Sequence[JointClaim]) -> list[Verdict]:
    return [verdict for claim in claims for verdict in claim.verdicts.values() if not verdict.claim.exact]


def _count_outcomes(verdicts: Sequence[Verdict]) -> str:
    counts = Counter("exploratory" if verdict.exploratory else verdict.outcome for verdict in verdicts)
    return ", ".join(f"{counts[name]} {name}" for name in (*OUTCOMES, "exploratory") if counts[name])


def _summarize(claims: Sequence[JointClaim]) -> str:
    verdicts = _list_judged(claims)
    if not verdicts:
        return "Nothing on this page is measured yet: no report is published."
    means = [claim.mean for claim in claims if claim.mean]
    of_means = means and f" {pluralize(len(means), 'mean')} over data sets: {_count_outcomes(means)}."
    total = f"**{pluralize(len(verdicts), 'verdict')} in all: {_count_outcomes(verdicts)}.**{of_means or ''}"
    return f"{total}\n{_count_by_data(claims)}"


def _count_by_data(claims: Sequence[JointClaim]) -> str:
    by_data: dict[str, list[Verdict]] = {name: [] for name in (*COLUMNS.values(), *SINGLE.values())}
    for claim in claims:
        for name, verdict in claim.verdicts.items():
            size = next((size for size in reversed(COLUMNS) if name.endswith(size)), "")
            by_data[SINGLE.get(name, COLUMNS[size])].extend([] if verdict.claim.exact else [verdict])
    counts = [f"{data}: {_count_outcomes(verdicts)}" for data, verdicts in by_data.items() if verdicts]
    return f"By data set: {'; '.join(counts)}."


def _describe_result(claims: Sequence[JointClaim]) -> str:
    verdicts = _list_judged(claims)
    counted = [verdict.outcome for verdict in verdicts if not verdict.exploratory]
    tests = pluralize(len(counted), "test")
    if not verdicts:
        return "Not measured yet." if not claims else "True by construction."
    if not counted:
        verb = "is" if len(verdicts) == 1 else "are"
        return f"No test counts yet: {pluralize(len(verdicts), 'verdict')} {verb} exploratory."
    if len(set(counted)) == 1:
        number = "both tests" if len(counted) == 2 else f"{'all ' * (len(counted) > 1)}{tests}"
        return f"**{counted[0].capitalize()}** in {number}."
    return f"**Mixed**: of {tests}, {_count_outcomes([v for v in verdicts if not v.exploratory])}."


def render_table(
    section: Section, sizes: Sequence[str], records: dict[str, ReportRecord], claims: dict[str, JointClaim]
) -> str:
    """Render the table of a section: one row per claim, one column per data set, and the mean over them."""
    rows = []
    titles = {"": section.column} if section.column else {size: COLUMNS[size] for size in sizes}
    for sentence, experiment in section.claims.items():
        of_sizes = {size: records.get(experiment + size) for size in titles}
        claim = claims.get(sentence)
        rows.append(
            {
                "claim": f"{sentence}{_describe_measure(claim)}",
                **{
                    title: _render_cell(of_sizes[size], sentence, claim, size)
                    for size, title in titles.items()
                },
                "mean": _render_mean(claim),
            }
        )
    table = pd.DataFrame(rows)
    has_means = (table["mean"] != "").any()
    return markdown_table(table if has_means else table.drop(columns="mean"), list(table.columns[1:]))


def _describe_measure(claim: JointClaim | None) -> str:
    verdicts = _list_judged([claim] if claim else [])
    if not verdicts:
        return ""
    expected = f"expected {verdicts[0].condition}"
    return f" ({expected})" if verdicts[0].claim.unit else f" ({verdicts[0].claim.quantity}; {expected})"


def _render_cell(record: ReportRecord | None, sentence: str, claim: JointClaim | None, size: str) -> str:
    verdict = claim.verdicts.get(record.sweep) if claim and record else None
    if verdict is None:
        return NOT_HERE if record and sentence in record.unmeasured else NOT_YET
    data = "" if verdict.data.startswith(DATA_NAMES[size]) else f" ({verdict.data})"
    return f"{_mark_outcome(verdict)}: {verdict.effect}{data}"


def _render_mean(claim: JointClaim | None) -> str:
    if claim is None or claim.mean is None:
        return ""
    trimmed = claim.interquartile
    added = f"; interquartile mean {format_interval(trimmed, claim.mean.claim.unit)}" if trimmed else ""
    return f"{_mark_outcome(claim.mean)}: {claim.mean.effect}{added}"


def _mark_outcome(verdict: Verdict) -> str:
    if verdict.claim.exact:
        return "count" if verdict.outcome == "count" else "**false count**"
    return f"{verdict.outcome} (exploratory)" if verdict.exploratory else f"**{verdict.outcome}**"


def _list_figures(folder: Path, experiment: str, figure: str) -> Iterator[tuple[str, str]]:
    for size in COLUMNS:
        name = f"{experiment}{size}_{figure}.png"
        if (folder / "figures" / name).exists():
            yield size, f"../experiments/figures/{name}"


def _link_figures(folder: Path, experiment: str, figure: str) -> str:
    links = [
        f"[{experiment if experiment in SINGLE else COLUMNS[size]}]({address})"
        for size, address in _list_figures(folder, experiment, figure)
    ]
    return f" Figure: {', '.join(links)}." if links else ""


def render_figure(folder: Path) -> list[str]:
    """Render the figure of accuracy against the number of images, on real images where it is published."""
    figures = dict(_list_figures(folder, WHY, "accuracy_by_images"))
    for size in ("_paper", "_medium", ""):
        if size in figures:
            text = f"Accuracy and gap against the number of training images, on {COLUMNS[size]}"
            return [f"![{text}]({figures[size]})\n", f"*{text}: mean and 95% interval over seeds.*\n"]
    return []


def describe_sources(folder: Path, records: dict[str, ReportRecord], joint: JointReport) -> Iterator[str]:
    """Yield one line per sweep, and one on what all verdicts have in common."""
    first = {claim.sentence: claim.verdicts for claim in joint.first}
    for name, record in records.items():
        pairs = [
            (claim.verdicts[name].outcome, first[claim.sentence][name].outcome)
            for claim in joint.claims
            if name in first.get(claim.sentence, {}) and not claim.verdicts[name].claim.exact
        ]
        same = sum(outcome == before for outcome, before in pairs)
        repeated = f"; {same} of {len(pairs)} outcomes are those of the first seeds" if pairs else ""
        title = f"[{name}](../experiments/{name}.md)" if (folder / f"{name}.md").exists() else name
        time = duration_text(record.training_seconds)
        yield f"- {title}: {pluralize(record.runs, 'run')}, {time} of training; {record.seeds}{repeated}."
    verdicts = [*_list_judged(joint.claims), *(claim.mean for claim in joint.claims if claim.mean)]
    level = 100 * max((verdict.family_confidence for verdict in verdicts), default=0)
    yield FAMILY.format(verdicts=pluralize(len(verdicts), "verdict"), level=level) if verdicts else ""


def main() -> None:
    """Write the page."""
    PAGE.write_text(render_page(EXPERIMENTS), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
