"""Figures encoded as files: PNG for screens and PDF for print, several at once."""

import io
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
from matplotlib import rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context

from cnnexp.core.machine import cores
from cnnexp.plots.axes import DARK, PAPER
from cnnexp.plots.figures import Drawing

MAX_PNG_SIDE_PIXELS = 1_600  # of a small picture


@dataclass(frozen=True, kw_only=True)
class RenderedFigure:
    """The files of a figure: PNG for light and for dark screens, and PDF for print."""

    png: bytes
    dark_png: bytes
    pdf: bytes


def render(drawing: Drawing, table: pd.DataFrame) -> RenderedFigure:
    """Draw a figure on white and on black, by Matplotlib's defaults and not the user's `matplotlibrc`.

    Args:
        drawing: The figure.
        table: One row per run.

    Returns:
        The encoded images.
    """
    with context(["default", PAPER]):
        figure = drawing.draw(table)
        png = _encode_png(figure)
        figure.set_layout_engine("none")  # keeps the layout, which would be computed again for the PDF
        pdf = _encode_pdf(figure)
    with context(["default", PAPER | DARK]):
        dark = drawing.draw(table)
        _copy_layout(figure, dark)
        return RenderedFigure(png=png, dark_png=_encode_png(dark), pdf=pdf)


@contextmanager
def start_rendering(
    drawings: Mapping[str, Drawing], table: pd.DataFrame
) -> Iterator[Callable[[], dict[str, RenderedFigure]]]:
    """Begin to draw several figures, in as many processes as there are cores if they can be forked safely.

    Args:
        drawings: The figures by their names.
        table: One row per run.

    Yields:
        A function that waits for the encoded images and returns them by name, see `render`.
    """
    processes = min(cores(), len(drawings))
    # JAX has threads; a fork of a process with threads can hang. Windows has no fork.
    if processes < 2 or "jax" in sys.modules or "fork" not in multiprocessing.get_all_start_methods():
        yield lambda: {name: render(drawing, table) for name, drawing in drawings.items()}
        return
    forks = multiprocessing.get_context("fork")  # drawings are functions that cannot be sent to a process
    with ProcessPoolExecutor(processes, forks, _inherit_drawings, (drawings, table)) as pool:
        # The last begin first: kernels, which take longest, come last in a report.
        images = {name: pool.submit(_render_inherited, name) for name in reversed(list(drawings))}
        try:
            yield lambda: {name: images[name].result() for name in drawings}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_INHERITED: list[tuple[Mapping[str, Drawing], pd.DataFrame]] = []  # by a forked process


def _inherit_drawings(drawings: Mapping[str, Drawing], table: pd.DataFrame) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process handles Ctrl-C
    _INHERITED.append((drawings, table))


def _render_inherited(name: str) -> RenderedFigure:
    drawings, table = _INHERITED[-1]
    return render(drawings[name], table)


def shrink_png(png: bytes) -> bytes:
    """Reduce a picture to half its size or less and to 64 colours: some ten kilobytes."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    scale = min(0.5, MAX_PNG_SIDE_PIXELS / max(picture.size))
    smaller = picture.resize([round(scale * side) for side in picture.size], Image.Resampling.LANCZOS)
    file = io.BytesIO()
    # Median cut, Pillow's own choice, spends the palette on greys: rare colours, a mark's, lose their hue.
    quantized = smaller.quantize(64, method=Image.Quantize.MAXCOVERAGE, kmeans=3)
    quantized.save(file, format="png", optimize=True)
    return file.getvalue()


def _copy_layout(source: Figure, target: Figure) -> None:
    """Place the axes of a figure as in another version of it, whose layout was computed.

    Where the layout consists of more than the places of axes, it is left to be computed again.
    """
    has_titles = any([target.get_suptitle(), target.get_supxlabel(), target.get_supylabel()])
    if has_titles or target.subfigs or len(target.axes) != len(source.axes):
        return
    for axes, placed in zip(target.axes, source.axes, strict=True):
        axes.set_position(placed.get_position(original=True), which="original")
    target.set_layout_engine("none")


def _encode_png(figure: Figure) -> bytes:
    """Encode a figure as `savefig` does, which would draw it twice if it has a layout engine."""
    file = io.BytesIO()
    figure.set_dpi(rcParams["savefig.dpi"])
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()


def _encode_pdf(figure: Figure) -> bytes:
    from matplotlib.backends.backend_pdf import FigureCanvasPdf  # takes a tenth of a second to import

    file = io.BytesIO()
    FigureCanvasPdf(figure).print_pdf(file, metadata={"CreationDate": None})
    return file.getvalue()
