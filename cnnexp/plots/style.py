"""The look of all figures: one colour and one mark per tying, and Matplotlib's settings."""

import math
import re
from typing import Any

import matplotlib as mpl
from matplotlib.colors import to_hex, to_rgb

# Okabe and Ito's palette, which colour-blind readers tell apart; marks and lines differ too.
STYLE = {
    "dense": {"color": "#D55E00", "marker": "s"},
    "local": {"color": "#009E73", "marker": "^"},
    "low_rank": {"color": "#CC79A7", "marker": "P"},
    "tiled": {"color": "#E69F00", "marker": "v"},
    "blocked": {"color": "#56B4E9", "marker": "D"},
    "shared": {"color": "#0072B2", "marker": "o"},
}
GREY = "#7A7A7A"
OTHER = {"color": GREY, "marker": "X"}
ORDER = list(STYLE)
DARKER, DARKEST, LARGER = 0.2, 0.5, 0.25  # per doubling of a tying's number, fractions
TEXT_WIDTH_INCHES = 6.75  # inches, of a paper's page
PAPER: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.which": "major",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "lines.markersize": 4,
    "lines.linewidth": 1.2,
    "pdf.fonttype": 42,
    "savefig.dpi": 200,
}
DARK: dict[Any, Any] = {
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#E4E4E4"
    ),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "#161616"),
    "grid.color": "#8A8A8A",
}


def style_of(tying: object) -> dict[str, Any]:
    """Return the colour and mark of a tying: those of its kind, darker and larger with its number.

    Where layers are tied differently, `['local', 'shared']`, the colour is the first one's and the mark the
    last one's.
    """
    if len(kinds := re.findall(r"'([^']+)'", str(tying))) > 1:
        return style_of(kinds[0]) | {"marker": style_of(kinds[-1])["marker"]}
    kind, _, size = str(tying).partition("(")
    style = STYLE.get(kind, OTHER)
    if kind not in STYLE or not (number := re.match(r"\d+", size)):
        return dict(style)
    doublings = math.log2(int(number[0])) - 1  # from 2, the usual number
    shade = min(max(DARKER * doublings, 0), DARKEST)
    red, green, blue = (channel * (1 - shade) for channel in to_rgb(style["color"]))
    larger = min(max(1 + LARGER * doublings, 0.5), 2)
    return style | {
        "color": to_hex((red, green, blue)),
        "markersize": larger * mpl.rcParams["lines.markersize"],
    }


def tying_order(tying: str) -> tuple[int, str]:
    """Return a key that sorts tyings from dense to shared, and by size within a kind."""
    kind = tying.partition("(")[0]
    return (ORDER.index(kind) if kind in ORDER else len(ORDER), f"{len(tying):3} {tying}")
