"""`cnnexp show`: networks described layer by layer from their configurations, and pictures of them."""

import io
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from cnnexp.config import RunConfig
from cnnexp.core.errors import UsageError
from cnnexp.core.text import short_number
from cnnexp.data.images import Images
from cnnexp.data.pipelines import ImageFiles
from cnnexp.data.shapes import infer_shape
from cnnexp.models.layers import NetworkSpec
from cnnexp.models.spec import describe_matching, specify_network, total_count
from cnnexp.report.tables import COUNT_COLUMNS, LAYER_COLUMNS, tabulate_layers
from cnnexp.store.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASS_COLUMNS = 12  # in the table of images per class
NAME_CHARACTERS = 100  # of a picture's file, at most
WIDE_COLUMNS = 105  # of a terminal that has room for every digit
LEGEND = "MACs: per image. memory: parameters and the state of the optimiser."


class Pictures:
    """The pictures of one command, in a folder outside the results, where no command takes it for a sweep.

    Args:
        folder: that the pictures are written to.
    """

    def __init__(self, folder: Path):
        self._folder, self._names = folder, Counter[str]()

    def save(self, figure: "Figure", title: str) -> str:
        """Write a figure to a file named after its title, numbered if that is taken; return its path."""
        name = re.sub(r"[^A-Za-z0-9._]+", "-", title).strip("-")[:NAME_CHARACTERS]
        self._names[name] += 1
        number = f"-{self._names[name]}" if self._names[name] > 1 else ""
        target, picture = self._folder / f"{name}{number}.png", io.BytesIO()
        figure.savefig(picture, format="png", dpi=120)
        write_bytes(target, picture.getvalue())
        return str(target)


def print_networks(configs: Sequence[RunConfig]) -> dict[str, float]:
    """Print a table of each network and write its picture; then describe each set of images likewise.

    Args:
        configs: The configurations of the runs. A network or a set that several runs share appears once.

    Returns:
        The number of parameters of every run by its id, as a command returns one number per run to Hydra.
    """
    from matplotlib.style import context

    console, pictures = Console(), Pictures(Path("show"))
    networks: dict[NetworkSpec, RunConfig] = {}
    for config in configs:
        networks.setdefault(specify_network(config), config)
    with context("default"):  # pictures are the same whatever the user's matplotlibrc says
        for network, config in networks.items():
            _print_network(network, config, console, pictures)
        console.print(f"[dim]{LEGEND}[/]", highlight=False)
        for line in _describe_images(configs, pictures):
            console.print(line, highlight=False, soft_wrap=isinstance(line, str))
    return {config.run_id: float(total_count(specify_network(config), "params")) for config in configs}


def _print_network(layers: NetworkSpec, config: RunConfig, console: Console, pictures: Pictures) -> None:
    """Print the table of a network, how its size was matched, and the path of its picture."""
    console.print(_make_layer_table(layers, config, wide=console.width >= WIDE_COLUMNS))
    if matched := describe_matching(config):
        model = config.model.model_dump()
        console.print(
            f"{model['match']} matched to {model['match_tying']}: target {matched['match/target']:,}, "
            f"ratio reached {matched['match/ratio']:.4f}",
            highlight=False,
        )
    console.print(_draw_network(layers, config, pictures), highlight=False, soft_wrap=True)


def _make_layer_table(layers: NetworkSpec, config: RunConfig, *, wide: bool) -> Table:
    inputs = "x".join(map(str, infer_shape(config.data).image))
    params = total_count(layers, "params")
    norms = sorted({f" with {layer.norm} normalisation" for layer in layers if layer.norm != "none"})
    network = f"{config.model.name}{''.join(norms)}"
    title = f"{network} on {config.data.dataset_name}, images of {inputs}: {params:,} parameters"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0), pad_edge=False)
    shown = [column for column in LAYER_COLUMNS if wide or column != "weights"]
    for column in shown:
        header = column if wide else column.replace("connections", "connec-\ntions")
        table.add_column(header, justify="left" if column in ("layer", "tying") else "right", overflow="fold")
    rows = tabulate_layers(layers, config)
    for index, row in enumerate(rows):
        if index == len(layers):
            table.add_section()
        table.add_row(*(_format_count(column, row[column], wide=wide) for column in shown))
    return table


def _format_count(column: str, value: Any, *, wide: bool) -> str:
    if column == "memory":
        return f"{short_number(value)}B"
    if column in COUNT_COLUMNS:
        return f"{value:,}" if wide else short_number(value)
    return value if isinstance(value, str) else f"{value:.3f}" if column == "sparsity" else f"{value:,.1f}"


def _describe_images(configs: Sequence[RunConfig], pictures: Pictures) -> Iterator[str | Table]:
    """Yield for each set of images a line about it, its images per class and the path of its picture."""
    from cnnexp.data.loading import describe_dataset, images_key, load_or_open
    from cnnexp.data.shapes import check_corruptions, check_prepared, check_size
    from cnnexp.plots.images import plot_data

    sets: dict[str, list[RunConfig]] = {}
    for config in configs:
        check_corruptions(config.data)
        sets.setdefault(images_key(config.images), []).append(config)
    for runs_of_set in sets.values():
        data = runs_of_set[0].images
        try:
            check_prepared(data)
            check_size(data)
        except UsageError as error:
            yield f"no picture of the images: {error}"
            continue
        images = load_or_open(data)
        yield describe_dataset(data, images)
        yield from _class_tables(runs_of_set, images)
        yield pictures.save(plot_data(runs_of_set, images), f"data-{data.dataset_name}")


def _class_tables(configs: Sequence[RunConfig], images: Images | ImageFiles) -> Iterator[Table]:
    """Count the images of each class that runs are trained, validated and tested on.

    There is one table for each pair of training and validation sizes; it shows the images that the first of
    the seeds draws.
    """
    from cnnexp.data.loading import count_images_per_class, resolve_split_seed

    config_of_sizes: dict[tuple[int | None, int], RunConfig] = {}
    for config in configs:
        config_of_sizes.setdefault((config.data.train_size, config.data.validation_size), config)
    for config in config_of_sizes.values():
        seed = resolve_split_seed(config)
        counts = count_images_per_class(images, config.data, seed)
        table = Table(
            title=f"images per class, as drawn by seed {seed}",
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 0),
            pad_edge=False,
        )
        narrow = len(counts["test"]) <= MAX_CLASS_COLUMNS
        classes = [str(label) for label in range(len(counts["test"]))] if narrow else ["fewest", "most"]
        for column in ("split", "images", *classes):
            table.add_column(column, justify="left" if column == "split" else "right")
        for split, numbers in counts.items():
            shown = numbers if narrow else (numbers.min(), numbers.max())
            table.add_row(split, f"{numbers.sum():,}", *(f"{number:,}" for number in shown))
        yield table


def _draw_network(layers: NetworkSpec, config: RunConfig, pictures: Pictures) -> str:
    """Write the picture of a network; return its path, or nothing if it has no layer to draw."""
    from cnnexp.plots.layers import plot_network

    figure = plot_network(layers)
    if figure is None:
        return ""
    tied = [layer for layer in layers if not layer.geometry.covers_image]
    tyings = "-".join(dict.fromkeys(f"{layer.tying} {layer.geometry.connectivity}" for layer in tied))
    return pictures.save(figure, f"{config.model.name}-{tyings}".replace(" local", ""))
