"""Figures as parts of a page: SVG whose ink follows the colour of the text, or PNG where there are many lines."""

import base64
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from boltzflow.analysis.plots import MAP_MAX

__all__ = ["Picture", "as_png", "as_svg", "colour_bar"]

INK = "#010203"
"""Stands for the colour of the text of the page, which is another one in the dark."""

STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.prop_cycle": mpl.cycler(color=["#2b83c6", "#d55e00", "#2e9e6b", "#a35bb5"]),
    "image.cmap": "viridis",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "path.simplify": True,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Args:
        image: The markup of the image itself.
        caption: Below it; "" for none.
    """

    image: str
    caption: str = ""


def as_svg(
    draw: Callable[[Axes], Any], *, alt: str, caption: str = "", size: tuple[float, float] = (4.0, 3.2), name: str
) -> Picture:
    """Draw on new Axes and embed the result.

    Args:
        draw: Is given the Axes.
        alt: What the figure shows, for those who cannot see it.
        caption: Below the figure.
        size: Width and height in inches.
        name: Different for every figure of a page, since the identifiers inside follow from it.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size)
        # room for labels of any width, in inches: to measure it would double the time
        _place(figure, left=0.72, right=0.12, bottom=0.52, top=0.12)
        draw(figure.axes[0])
        return Picture(_embedded(figure, alt), caption)


def as_png(draw: Callable[[Axes], Any], *, alt: str, caption: str = "", size: tuple[float, float], dpi: int) -> Picture:
    """As `as_svg`, for figures of very many lines.

    Args:
        draw: Is given the Axes.
        alt: What the figure shows.
        caption: Below the figure.
        size: Width and height in inches.
        dpi: Pixels per inch.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size)
        _place(figure, left=0.0, right=0.0, bottom=0.0, top=0.0)
        draw(figure.axes[0])
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=dpi, transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    width, height = (round(inches * dpi) for inches in size)
    tag = f'<img alt="{html.escape(alt)}" width="{width}" height="{height}" src="data:image/png;base64,{data}">'
    return Picture(tag, caption)


def colour_bar(label: str, *, name: str) -> Picture:
    """The colour scale that all maps of a page share.

    Args:
        label: What the colours mean.
        name: As for `as_svg`.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.0, 0.62))
        _place(figure, left=0.15, right=0.15, bottom=0.42, top=0.04)
        Colorbar(
            figure.axes[0],
            mpl.cm.ScalarMappable(Normalize(0, MAP_MAX), STYLE["image.cmap"]),
            orientation="horizontal",
            label=label,
        )
        return Picture(_embedded(figure, f"colour scale of the maps: {label}, from 0 (dark) to {MAP_MAX:g} (light)"))


def _place(figure: Figure, *, left: float, right: float, bottom: float, top: float) -> None:
    """Add Axes with margins in inches."""
    width, height = figure.get_size_inches()
    box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    figure.add_axes(box)


def _embedded(figure: Figure, alt: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    # coordinates to a thousandth of a point are finer than any screen
    text = re.sub(r"(\d+\.\d{3})\d+", r"\1", text)
    opening = re.match(r"<svg[^>]*>", text).group()
    box = re.search(r'viewBox="[^"]*"', opening).group()
    # as wide as its column, but not so wide that its letters outgrow those of the page
    limit = round(1.6 * float(box.split()[2]))
    tag = f'<svg {box} role="img" aria-label="{html.escape(alt)}" style="max-width:{limit}px">'
    return tag + text[len(opening) :]
