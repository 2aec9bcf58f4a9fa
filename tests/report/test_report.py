"""From a store with known numbers to intervals, verdicts, figures and a page."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import norm, t

from cnnexp.analysis.compare import compare_sweeps
from cnnexp.analysis.dataframe import make_dataframe, varying_keys
from cnnexp.analysis.tables import distinguishing_keys
from cnnexp.cli.tables import print_comparison, print_results
from cnnexp.core.errors import UsageError
from cnnexp.plots.axes import Published, get_style, tying_sort_key
from cnnexp.plots.figures import plot_accuracy_and_gap
from cnnexp.plots.layers import draw_kernel_mosaic
from cnnexp.report.output import print_report, publish_report, write_report
from cnnexp.report.render import POLICY
from cnnexp.report.report import make_default_drawings
from cnnexp.store.runs import read_runs
from tests.browser import dom_of, looked_at
from tests.conftest import call_cnnexp

SUPPORTED = "supported (exploratory)"  # as the seeds are among those that were seen
PARAMS = {"dense": 1000, "local": 100, "shared": 10}
TEST = {"dense": 0.50, "local": 0.50, "shared": 0.80}  # what each tying reaches on 256 images


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three tyings, two training sizes, three seeds; `shared` is better by 0.3, `local` by nothing."""
    for tying in PARAMS:
        for size in (64, 256):
            for seed in (0, 1, 2):
                write_run(tmp_path / "results/why_convolutions", tying, size, seed)
    return tmp_path / "results/why_convolutions"


def write_run(
    folder: Path,
    tying: str,
    size: int,
    seed: int,
    status: str = "finished",
    better: float = 0.0,
    rate: float | None = None,
    validation: float | None = None,
) -> None:
    test = TEST[tying] + 0.01 * seed - (0.1 if size == 64 else 0) + better
    metrics = {"train/accuracy": 1.0, "test/accuracy": test, "gap/accuracy": 1 - test}
    metrics |= {} if validation is None else {"validation/accuracy": validation}
    summary = {"experiment": "why_convolutions", "seed": seed, "params/total": PARAMS[tying], "macs": 7}
    summary |= {"steps": 10, "epochs": 1.0, "version/jax": "1", "device": "cpu", "git_revision": "abc"}
    run = folder / (f"{tying}-{size}-{seed}" + (f"-{rate}" if rate else ""))
    run.mkdir(parents=True)
    model = {"name": "simple_cnn", "tying": tying, "connectivity": "local", "head": "softmax"}
    model["match"] = "none"
    config = {"experiment": "why_convolutions", "seed": seed, "model": model}
    data = {
        "train_size": size,
        "noise": 0.1,
        "permutation": "none",
        "block": 1,
        "pixel_noise": 0.0,
        "apart": False,
    }
    config |= {"data": data} if rate is None else {"data": data, "optim": {"learning_rate": rate}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [{"step": 0, "test/accuracy": 0.1}, {"step": 5, "test/accuracy": test / 2}, {"step": 10} | metrics]
    (run / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "summary.json").write_text(json.dumps(summary | metrics))
    (run / "status.json").write_text(json.dumps({"status": status}))


def test_frame_has_a_row_a_finished_run_and_knows_its_cells(sweep: Path) -> None:
    write_run(sweep, "shared", 999, 0, status="failed")
    table = make_dataframe(read_runs(sweep))
    assert len(table) == 18
    assert varying_keys(table) == ["model.tying", "data.train_size"]
    run = table[(table["model.tying"] == "shared") & (table["data.train_size"] == 256) & (table["seed"] == 0)]
    assert run["test/accuracy_while_training"].item() == pytest.approx(
        (0.1 + 0.4) / 4 + (0.4 + 0.8) / 4  # of the lines from step 0 to 5 and from 5 to 10
    )
    assert run["steps_to/0.5/low"].item() == 6 and run["steps_to/0.5/high"].item() == 10


def test_verdicts_count_the_test_images_where_hits_are_stored(sweep: Path) -> None:
    lead = "A convolution is more accurate than a dense network trained on the same images."
    (alone,) = (v for v in write_report(sweep).verdicts if v.claim.sentence == lead)
    text = (sweep / "report/report.md").read_text()
    assert (
        "account for the seeds, but not the draw of the test images." in text
        and "standard errors" not in text
    )
    is_easy = np.random.default_rng(0).random(200)
    for run in read_runs(sweep):
        is_right = (
            is_easy < run.summary["test/accuracy"]
            if run.config["model"]["tying"] == "shared"
            else is_easy > 0.5
        )
        bits = {"bits": np.packbits(is_right), "images": np.array([200, 7], np.uint32)}
        np.savez(run.folder / "hits.npz", **bits)
    (counted,) = (v for v in write_report(sweep).verdicts if v.claim.sentence == lead)
    assert alone.interval is not None and counted.interval is not None
    assert counted.interval.value == alone.interval.value
    assert counted.interval.low < alone.interval.low - 0.05 and counted.interval.high > alone.interval.high
    text = (sweep / "report/report.md").read_text()
    assert "account for the seeds and the draw of the test images." in text
    assert re.search(r"\| seeds 0.0, images [1-9]", text)


def test_report_has_the_numbers_the_verdicts_and_the_pictures(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = write_report(sweep)
    print_report(report)
    printed = capsys.readouterr().out
    table = pd.read_csv(sweep / "report/table.csv")
    assert len(table) == 6
    cell = table[(table["model.tying"] == "local") & (table["data.train_size"] == 256)].iloc[0]
    assert cell["test/accuracy"] == pytest.approx(0.51)
    half = t.ppf(0.975, 2) * 0.01 / 3**0.5
    assert cell["test/accuracy/low"] == pytest.approx(0.51 - half)
    assert cell["test/accuracy/high"] == pytest.approx(0.51 + half)
    verdicts = {judged.claim.sentence: judged.marked_outcome for judged in report.verdicts}
    assert (
        verdicts["A convolution is more accurate than a locally connected network: sharing helps."]
        == SUPPORTED
    )
    assert verdicts["A convolution has a smaller generalisation gap than a dense network."] == SUPPORTED
    sparsity = "A sparse network wired at random is more accurate than a dense network: sparsity alone helps."
    assert sparsity in {claim.sentence for claim in report.unmeasured_claims}
    assert "supported" in printed and "100.0x" in printed and "more claims need cells" in printed
    markdown = (sweep / "report/report.md").read_text()
    assert "cnnexp run experiment=why_convolutions" in markdown and "10 steps" in markdown
    pictures = re.findall(r"\]\(([\w.]+)\)", markdown)
    assert len(pictures) == 3
    for name in pictures:
        assert (sweep / "report" / name).read_bytes()[:4] == b"\x89PNG"
        assert (sweep / "report" / name).with_suffix(".pdf").read_bytes()[:4] == b"%PDF"


def test_page_is_self_contained(sweep: Path) -> None:
    write_report(sweep)
    page = (sweep / "report/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == page.count('srcset="data:image/png;base64,') == 3
    assert not re.search(r'(src|srcset)="(?!data:)|href="(?!#|\.\./[\w.-]+/")', page)
    assert '<strong class="supported">supported</strong>' in page


def test_a_cell_links_to_its_runs_but_not_where_there_is_no_store(sweep: Path, tmp_path: Path) -> None:
    report = write_report(sweep)
    page = (sweep / "report/report.html").read_text()
    links = re.findall(r'<a href="([^"#]+)">(\d)</a>', page)
    assert len(links) == 18 and {seed for _, seed in links} == {"0", "1", "2"}
    for address, seed in links:
        summary = json.loads((sweep / "report" / address / "summary.json").read_text())
        assert str(summary["seed"]) == seed
    row = next(line for line in page.split("<tr>") if "local-256-0" in line)
    assert "local-256-2" in row and "local-64" not in row and "51.0" in row
    published = publish_report(report, tmp_path / "published").read_text()
    assert "](figures/" in published and "](../" not in published


def test_numbers_of_a_page_lie_on_the_right(sweep: Path) -> None:
    write_report(sweep)
    page = (sweep / "report/report.html").read_text()
    table = page.partition('<h2 id="table">')[2].partition("</table>")[0]
    numbers = {
        name
        for attributes, name in re.findall(r"<th ([^>]*)>([^<]*)</th>", table.partition("</thead>")[0])
        if 'class="number"' in attributes
    }
    assert numbers == {"train_size", "parameters", "MACs", "seeds", "train accuracy", "test accuracy", "gap"}
    cells = re.findall(r"<t[dh] ([^>]*)>", table.partition("</thead>")[2])
    assert len(cells) == 6 * (len(numbers) + 2)  # and the tying and the runs
    assert sum('class="number"' in cell for cell in cells) == 6 * len(numbers)
    assert "text-align:right" not in page


def test_tables_of_the_protocol_have_headings(sweep: Path) -> None:
    write_report(sweep)
    page = (sweep / "report/report.html").read_text()
    for before, after in pairwise(page.split("<table")):
        assert re.search("<(h2|h3|p|li)", before.rpartition("</table>")[2]), after[:100]


@pytest.mark.slow
def test_tables_are_sorted_by_a_column(sweep: Path) -> None:
    write_report(sweep)
    page = sweep / "report/report.html"
    assert "Sort by this column" in dom_of(page.as_uri())  # as the policy allows this script
    press = """<script>
        const table = [...document.querySelectorAll("table")].find(t => /train_size/.test(t.textContent));
        const read = column => [...table.tBodies[0].rows].map(r => r.cells[column].textContent).join();
        const seen = [];
        for (const name of ["parameters", "parameters", "tying"]) {
          [...table.querySelectorAll("th button")].find(b => b.textContent === name).click();
          seen.push(read(0), read(2), table.querySelector("[aria-sort]").ariaSort);
        }
        document.title = seen.join(";");
    </script></body>"""
    copy = page.with_name("sorted.html")
    copy.write_text(page.read_text().replace(POLICY, "").replace("</body>", press))
    title = re.search("<title>(.*?)</title>", dom_of(copy.as_uri()))
    assert title
    by_parameters, parameters, rises, _, falling, falls, by_tying, _, _ = title[1].split(";")
    assert by_parameters == "shared,shared,local,local,dense,dense" and rises == "ascending"
    assert parameters == "10,10,100,100,1,000,1,000" and falls == "descending"
    assert falling == "1,000,1,000,100,100,10,10"
    assert by_tying == "dense,dense,local,local,shared,shared"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.slow
def test_page_is_readable_on_a_phone_and_by_a_screen_reader(sweep: Path, *, dark: bool) -> None:
    write_report(sweep)
    found = looked_at(sweep / "report/report.html", 390, dark=dark)
    assert found["violations"] == [] and found["passes"] > 20
    assert found["overflow"] <= 0 and found["dark"] == dark
    assert len(found["images"]) == 3 and min(found["images"]) > 600


def test_report_says_what_failed_and_what_was_typed(sweep: Path) -> None:
    write_run(sweep, "shared", 999, 0, status="failed")
    (sweep / "shared-999-0/error.txt").write_text("Traceback\n  …\nValueError: no such thing\n")
    (sweep / "commands.txt").write_text("cnnexp run experiment=why_convolutions 'seed=range(3)'\n")
    write_report(sweep)
    markdown = (sweep / "report/report.md").read_text()
    assert re.search(r"- `shared-999-0` shared .*seed \d+, failed: ValueError: no such thing\n", markdown)
    assert "```\ncnnexp run experiment=why_convolutions 'seed=range(3)'\n```" in markdown
    assert "18 finished, 1 failed" in markdown and "| dense | 1,000 |" in markdown


def test_results_in_every_format(
    sweep: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    files = {}
    for form in ("csv", "parquet", "latex", "markdown"):
        files[form] = tmp_path / f"cells.{form}"
        print_results(sweep, conditions=["seed<2"], by=["model.tying"], form=form, output=files[form])
    read = pd.read_csv(files["csv"])
    assert read["model.tying"].tolist() == ["dense", "local", "shared"] and set(read["seeds"]) == {2}
    pd.testing.assert_frame_equal(read, pd.read_parquet(files["parquet"]), check_dtype=False)
    latex = files["latex"].read_text()
    assert "\\toprule" in latex and "\\begin{tabular}{lrrr" in latex and "75.5" in latex
    assert files["markdown"].read_text().startswith("| tying | parameters |")
    capfdbinary.readouterr()
    print_results(sweep, conditions=["seed=0"])
    printed = capfdbinary.readouterr().out.decode()
    assert len(printed.splitlines()) == 6 + 2 and "80.0" in printed
    with pytest.raises(UsageError, match=r"did you mean 'model\.tying'"):
        print_results(sweep, by=["model.tieing"])


def read_strictly(text: str) -> list[dict[str, object]]:
    """Read JSON, which has no NaN and no infinity."""
    return json.loads(text, parse_constant=pytest.fail)


def test_json_has_a_record_per_run_with_every_digit_and_null_for_what_is_missing(
    sweep: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    summary = sweep / "shared-256-0" / "summary.json"
    precise = 0.1 + 0.2 / 3
    change = {"test/accuracy": precise, "train/loss": None, "note": [float("nan"), "α"]}
    summary.write_text(json.dumps(json.loads(summary.read_text()) | change))
    assert call_cnnexp("results", str(sweep), "--format", "json") == 0
    records = {record["run_id"]: record for record in read_strictly(capfd.readouterr().out)}
    run, other = records["shared-256-0"], records["local-256-0"]
    assert len(records) == 18
    assert run["model.tying"] == "shared" and run["data.train_size"] == 256 and run["seed"] == 0
    assert run["test/accuracy"] == precise and run["train/loss"] is None and run["note"] == [None, "α"]
    assert other["note"] is None and other["steps_to/0.9/high"] is None


def test_json_of_cells_is_written_to_a_file_and_agrees_with_parquet(sweep: Path, tmp_path: Path) -> None:
    words = ["results", str(sweep), "--by", "model.tying", "--where", "seed=0"]
    for form in ("json", "parquet"):
        assert call_cnnexp(*words, "--format", form, "-o", str(tmp_path / form)) == 0
    cells = read_strictly((tmp_path / "json").read_text())
    assert [cell["model.tying"] for cell in cells] == ["dense", "local", "shared"]
    assert {cell["test/accuracy/low"] for cell in cells} == {None}  # one seed has no interval
    pd.testing.assert_frame_equal(
        pd.DataFrame(cells), pd.read_parquet(tmp_path / "parquet"), check_exact=True, check_dtype=False
    )


def test_two_sweeps_side_by_side(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "results/other"
    for seed in (0, 1, 2):
        write_run(other, "dense", 64, seed)
        write_run(other, "local", 64, seed, better=0.2 + 0.001 * seed)
    table = compare_sweeps(*(make_dataframe(read_runs(folder)) for folder in (sweep, other)))
    assert len(table) == 2 * 3
    test = table[table["metric"] == "test/accuracy"].set_index("model.tying")
    assert test["moved"].to_dict() == {"dense": False, "local": True}
    assert test.loc["local", "change"] == pytest.approx(0.201)
    print_comparison(sweep, other)
    printed = capsys.readouterr().out
    assert "why_convolutions: 18 runs, 3 seeds" in printed and "2 of 6 numbers moved" in printed


def test_unlike_seeds_are_compared_unpaired(sweep: Path, tmp_path: Path) -> None:
    for seed in (7, 8, 9):
        write_run(tmp_path / "results/other", "dense", 64, seed)
    table = compare_sweeps(
        *(make_dataframe(read_runs(folder)) for folder in (sweep, tmp_path / "results/other"))
    )
    change = table[table["metric"] == "test/accuracy"].iloc[0]
    assert change["change"] == pytest.approx(0.07) and change["moved"]
    assert change["change/high"] - change["change/low"] > 0.02


def test_what_cannot_be_reported_is_refused(sweep: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'why_convolutions'"):
        write_report(tmp_path / "results/why_convolution")
    with pytest.raises(UsageError, match="no sweep in"):
        write_report(tmp_path / "elsewhere/x")
    write_run(tmp_path / "results/started", "local", 64, 0, status="running")
    with pytest.raises(UsageError, match="none of its 1 run has finished"):
        write_report(tmp_path / "results/started")


def test_figures_have_one_style_a_tying_and_the_published_values(sweep: Path) -> None:
    table = make_dataframe(read_runs(sweep))
    table = table.assign(**{"data.name": "digits"})
    published = Published("a paper", {"shared": {100.0: 0.9}}, "digits")
    figure = plot_accuracy_and_gap(table, "params/total", lines=False, published=published)
    accuracy, gap = figure.axes
    drawn, legend = (line for line in accuracy.lines if line.get_marker() == "*")
    assert legend.get_label() == "a paper"
    assert (drawn.get_xdata(), drawn.get_ydata()) == ([100.0], [0.9])
    assert drawn.get_color() == get_style("shared")["color"]
    assert len(gap.containers) == 3 and len(accuracy.containers) == 6  # intervals always; train beside test
    assert accuracy.get_xscale() == gap.get_xscale() == "log"
    assert get_style("tiled(2)")["marker"] == get_style("tiled(4)")["marker"] != get_style("shared")["marker"]
    order = ["shared", "tiled(2)", "local", "tiled(16)", "dense", "odd"]
    assert sorted(order, key=tying_sort_key) == ["dense", "local", "tiled(2)", "tiled(16)", "shared", "odd"]


def test_a_sweep_without_an_experiment_has_figures_too(sweep: Path) -> None:
    assert set(make_default_drawings(make_dataframe(read_runs(sweep)))) == {
        "accuracy_by_images",
        "accuracy_by_params",
    }


def test_pictures_of_kernels_repeat_only_where_they_are_shared() -> None:
    one = np.random.default_rng(0).normal(size=(1, 1, 3, 3, 2)).astype(np.float32)
    shared = draw_kernel_mosaic(np.tile(one, (2, 2, 1, 1, 1)))
    height, width = shared.shape[0] // 2, (shared.shape[1] - 12) // 4
    assert (shared[:height, :width] == shared[height:, :width]).all()
    assert (shared[:height, :width] == shared[:height, width : 2 * width]).all()
    assert (shared[:height, :width] != shared[:height, -width:]).any()  # another filter
    broken = draw_kernel_mosaic(np.full_like(one, np.nan))
    assert broken.max() == 255


def test_kernels_of_a_signal_lie_across() -> None:
    positions, taps = 5, 9
    picture = draw_kernel_mosaic(np.ones((positions, 1, taps, 1, 3)))
    assert picture.shape[1] > picture.shape[0] / 3 > positions
    assert max(picture.shape) < 2_000


def test_a_table_names_the_fewest_keys_that_tell_its_cells_apart() -> None:
    cells = pd.DataFrame(
        {
            "model.tying": ["shared", "local", "shared", "local"],
            "model.features": ["[2, 4]", "[2, 4]", "[8]", "[8]"],
            "data.noise": [0.1, 0.1, 0.2, 0.2],
            "data.digits": [1, 1, None, None],
            "optim.learning_rate": [0.1, 0.2, 0.3, 0.4],
        }
    )
    assert distinguishing_keys(cells) == ["model.tying", "data.noise", "optim.learning_rate"]
    alone = cells.drop(columns=["data.noise", "data.digits"])
    assert distinguishing_keys(alone) == ["model.tying", "model.features", "optim.learning_rate"]


def test_a_report_compares_the_convolution_with_other_tyings(sweep: Path) -> None:
    for tying in PARAMS:
        for seed in (3, 4):
            write_run(sweep, tying, 256, seed)
    report = write_report(sweep)
    table = pd.read_csv(sweep / "report/comparison.csv").set_index("model.tying")
    assert set(table.index) == {"dense", "local"} and set(table["seeds"]) == {5}
    assert table["difference"].tolist() == pytest.approx([0.3, 0.3])
    wilson = 5 / (5 + norm.ppf(0.975) ** 2)
    assert table["probability"].tolist() == [1.0, 1.0]
    assert table["probability/low"].tolist() == pytest.approx([wilson, wilson])
    markdown = (sweep / "report/report.md").read_text()
    assert f"| dense | 5 | 30.0 [30.0, 30.0] | 1.00 [{wilson:.2f}, 1.00] |" in markdown
    cell = report.cells[(report.cells["model.tying"] == "local") & (report.cells["data.train_size"] == 256)]
    assert cell["test/accuracy/iqm"].item() == pytest.approx(np.mean([0.51, 0.52, 0.53]))
    assert "| test IQM |" in markdown and "interquartile mean" in markdown


def test_a_report_without_a_convolution_compares_no_tyings(tmp_path: Path) -> None:
    for tying in ("dense", "local"):
        write_run(tmp_path / "sweep", tying, 64, 0)
    report = write_report(tmp_path / "sweep")
    assert report.comparison.empty and not (tmp_path / "sweep/report/comparison.csv").exists()
    assert "Convolution against" not in (tmp_path / "sweep/report/report.md").read_text()
