"""The pages that are made of published verdicts are up to date, and read well whatever the verdicts are."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cnnexp.core.user_code import execute_file
from cnnexp.report.experiments import load_experiment
from cnnexp.report.records import ClaimRecord, ReportRecord, VerdictRecord, encode_record

ROOT = Path(__file__).parents[2]
SCRIPT = "scripts/docs/why_convolutions_work.py"
page = execute_file(ROOT / SCRIPT)
listing = execute_file(ROOT / "scripts/docs/list_experiments.py")
LEAD = "A convolution is more accurate than a dense network trained on the same images."
SPARSITY = "A sparse network wired at random is more accurate than a dense network: sparsity alone helps."
COUNT = "A convolution has fewer parameters than a dense network of equal width."
Publish = Callable[..., None]


@pytest.fixture
def publish(tmp_path: Path) -> Publish:
    """Write a report with one value by seed for each of its claims."""

    def make_verdict(values: list[float], exploratory: str, data: str) -> VerdictRecord:
        return VerdictRecord(
            outcome="count" if len(values) == 1 else "inconclusive",
            exploratory=exploratory,
            estimate=sum(values) / len(values),
            interval=(values[0], values[0]),
            confidence=0.95,
            family_confidence=0.95,
            seeds=len(values),
            agreeing_seeds=0,
            values=values,
            seeds_variance=None,
            images_variance=None,
            choice_variance=None,
            probability=None,
            more_seeds=None,
            frozen="",
            scope=f"{data}; simple_cnn; 10 steps",
        )

    def write(name: str, data: str, claims: dict[str, list[float]], exploratory: str = "", **more) -> None:
        records = [
            ClaimRecord(
                sentence=sentence,
                measured_by="a measure",
                unit="x" if len(values) == 1 else "points",
                expected=(1.0 if len(values) == 1 else 0.02, float("inf")),
                exact=len(values) == 1,
                range=(float("-inf"), float("inf")),
                source="",
                published="",
                verdict=make_verdict(values, exploratory, data),
                first_verdict=make_verdict(values, exploratory, data)
                if "fresh" in more.get("seeds", "")
                else None,
            )
            for sentence, values in claims.items()
        ]
        values = {"seeds": "seeds 0–4", "unmeasured": []} | more
        record = ReportRecord(
            sweep=name,
            experiment=name.removesuffix("_medium"),
            question="",
            metric="accuracy",
            runs=120,
            training_seconds=600,
            commands=[],
            figures={},
            claims=records,
            **values,
        )
        (tmp_path / f"{name}.json").write_text(encode_record(record))

    return write


def test_the_committed_page_is_what_the_published_reports_say() -> None:
    stale = (ROOT / "docs/why_convolutions_work.md").read_text(encoding="utf-8") != page.render_page(
        ROOT / "experiments"
    )
    assert not stale, f"stale; run: {SCRIPT}"


def test_every_claim_of_the_page_is_in_its_experiment() -> None:
    sentences = [sentence for section in page.SECTIONS for sentence in section.claims]
    assert len(set(sentences)) == len(sentences)
    for section in page.SECTIONS:
        for sentence, experiment in section.claims.items():
            assert sentence in {claim.sentence for claim in load_experiment(experiment).claims}


def test_without_reports_the_page_says_that_nothing_is_measured(tmp_path: Path) -> None:
    text = page.render_page(tmp_path)
    assert "Nothing on this page is measured yet" in text and "Not measured yet." in text
    assert "supported: " not in text and "**" not in text.partition("## 1.")[2]


def test_verdicts_of_two_data_sets_stand_side_by_side_with_their_mean(
    publish: Publish, tmp_path: Path
) -> None:
    high, low = [0.1, 0.11, 0.12, 0.1, 0.11], [-0.1, -0.11, -0.12, -0.1, -0.11]
    publish("why_convolutions", "digits 12×12, 256 images", {LEAD: high, SPARSITY: low, COUNT: [117.0]})
    publish(
        "why_convolutions_medium",
        "fashion_mnist, 256 images",
        {LEAD: [value + 0.1 for value in high]},
        seeds="fresh seeds 1000–1004",
        unmeasured=[SPARSITY],
    )
    text = page.render_page(tmp_path)
    rows = {line.split(" | ")[0].strip("| ").partition(" (expected")[0]: line for line in text.splitlines()}
    assert rows[LEAD].count("**supported**") == 3 and "+10.8 [" in rows[LEAD] and "+15.8 [" in rows[LEAD]
    assert "(expected above +2.0 points)" in rows[LEAD]
    assert "| **refuted**: -10.8 [" in rows[SPARSITY] and "| not measured on these data |" in rows[SPARSITY]
    assert "| count: 117.0x | not measured yet |" in rows[COUNT]
    assert "**3 verdicts in all: 2 supported, 1 refuted.** 1 mean over data sets: 1 supported." in text
    assert "**Supported** in both tests." in text and "**Refuted** in 1 test." in text
    assert "120 runs, 10 min of training; fresh seeds 1000–1004; 1 of 1 outcomes are" in text
    assert "The 4 verdicts of this page" in text


def test_experiments_with_data_of_their_own_share_a_column(publish: Publish, tmp_path: Path) -> None:
    publish("why_convolutions", "digits 12×12, 256 images", {LEAD: [0.1, 0.11, 0.12]})
    section = page.SECTIONS[-1]
    sentence = next(claim for claim, experiment in section.claims.items() if experiment == "gaussianity")
    publish("gaussianity", "nonlinear_gaussian of 60 points", {sentence: [5.1, 5.2, 5.3]})
    text = page.render_page(tmp_path)
    assert f"By data set: scattered digits: 1 supported; {section.column}: 1 supported." in text
    table = text.partition(f"| claim | {section.column} |")[2].partition("\n\n")[0]
    (row,) = (line for line in table.splitlines() if sentence in line)
    assert "**supported**: " in row and row.endswith("(nonlinear_gaussian of 60 points) |")
    assert table.count("not measured yet") == len(section.claims) - 1


def test_exploratory_verdicts_and_other_data_are_marked(publish: Publish, tmp_path: Path) -> None:
    publish("why_convolutions", "mnist1d, 256 images", {LEAD: [0.1, 0.11, 0.12]}, exploratory="changed")
    text = page.render_page(tmp_path)
    assert "| supported (exploratory): +11.0 [" in text and "] points (mnist1d) |" in text
    assert "No test counts yet: 1 verdict is exploratory." in text and "1 exploratory.**" in text


def test_the_table_of_experiments_counts_the_verdicts_of_each_size_and_set_of_seeds(
    publish: Publish, tmp_path: Path
) -> None:
    claims = {LEAD: [0.1, 0.11, 0.12], SPARSITY: [0.1, 0.11, 0.12], COUNT: [117.0]}
    publish("translation", "digits 12×12", claims, exploratory="changed")
    publish("translation_medium", "fashion_mnist", claims, seeds="fresh seeds 1000–1002")
    for name in ("translation_medium", "translation", "older"):
        (tmp_path / f"{name}.md").write_text("# Does it move?\n")
    verdicts = "| A. | **refuted** | 1 |\n| B. | **refuted** (exploratory) | 2 |\n"
    summary = "1,200 runs: 1,200 finished; 7 min of training on cpu.\n"
    (tmp_path / "older.md").write_text(f"# Does it move?\n\n{summary}\n{verdicts}")
    (tmp_path / "translation.py").touch()
    rows = [listing.render_row(path).strip("|\n ") for path in listing.list_reports(tmp_path)]
    assert [row.split(" | ", 1) for row in rows] == [
        [
            "[older](older.md)",
            "small | Does it move? | 1 refuted, 1 exploratory | not yet | 1,200 runs, 7 min",
        ],
        [
            "[translation](translation.md)",
            "small | Does it move? | 2 exploratory | not yet | 120 runs, 10 min",
        ],
        [
            "[translation](translation_medium.md)",
            "medium |  | 2 inconclusive | 2 inconclusive | 120 runs, 10 min",
        ],
    ]
    (tmp_path / "unborn.py").write_text('"""Does it | matter?\n\nNot yet.\n"""\n')
    (module,) = listing.list_unreported(tmp_path)
    assert (
        listing.render_unreported(module)
        == "| [unborn](unborn.py) |  | Does it \\| matter? | not run yet |  |  |\n"
    )
