"""Pictures as densities in the plane, drawn by code: what a map that cannot tear space finds hard."""

import math

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import UnknownNameError, nearest
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import uniform
from boltzflow.targets.target import Target

__all__ = ["ImageDensity", "picture"]

EXTENT = 3.0
"""Pictures fill the square |x|, |y| <= EXTENT."""


class ImageDensity(Target):
    """Density proportional to a picture, bilinear between its nodes and zero outside; field "x" of shape (2,).

    log Z = 0: the picture is normalised by its exact integral. Samples are exact: in a cell the density is a mixture
    of one product of linear densities per corner. It does not depend on the context.

    Args:
        name: What is shown: one of `PICTURES`.
        n_nodes: Nodes along each side, at least 2.

    Raises:
        UnknownNameError: If there is no such picture.
    """

    def __init__(self, name: str = "face", *, n_nodes: int = 121) -> None:
        super().__init__({"x": Space("line", (2,))}, name=f"image_{name}", log_z=0.0)
        values = picture(name, n_nodes=n_nodes)
        self.spacing = 2 * EXTENT / (n_nodes - 1)
        corners = torch.stack([values[:-1, :-1], values[1:, :-1], values[:-1, 1:], values[1:, 1:]])
        values = values / (0.25 * self.spacing**2 * corners.sum())
        self.register_buffer("values", values)
        # of every cell: its first corner, what s, t and st add to it
        low, high = values[:-1], values[1:]
        bilinear = [low[:, :-1], (high - low)[:, :-1], low.diff(dim=1), (high - low).diff(dim=1)]
        self.register_buffer("_bilinear", torch.stack(bilinear, -1).flatten(0, 1), persistent=False)
        self.register_buffer("_corner_mass", corners.flatten().cumsum(0) / corners.sum(), persistent=False)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Minus the log of the picture, (batch,); +inf outside."""
        position = (state["x"].double() + EXTENT) / self.spacing
        n_cells = len(self.values) - 1
        cell = position.detach().floor().clamp(0, n_cells - 1).nan_to_num()
        inside = ((position >= 0) & (position <= n_cells)).all(1)
        s, t = torch.where(inside[:, None], position - cell, 0.5).unbind(1)
        number = torch.add(cell[:, 1], cell[:, 0], alpha=n_cells).long()
        corner, along_s, along_t, along_both = self._bilinear.double().index_select(0, number).unbind(1)
        value = torch.addcmul(torch.addcmul(corner, s, along_s), t, torch.addcmul(along_t, s, along_both))
        return torch.where(inside, -torch.log(value), torch.inf)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        u = uniform((3, n), rng, self.values)
        chosen = torch.searchsorted(self._corner_mass, u[0].to(self._corner_mass), right=True)
        n_cells = (len(self.values) - 1) ** 2
        chosen = chosen.clamp_max(4 * n_cells - 1)
        corner, cell = chosen // n_cells, chosen % n_cells
        place = []
        for axis, index in enumerate((cell // (len(self.values) - 1), cell % (len(self.values) - 1))):
            rising = (corner >> axis) & 1 == 1
            share = torch.where(rising, u[axis + 1].sqrt(), 1 - u[axis + 1].sqrt())
            place.append((index + share) * self.spacing - EXTENT)
        return self.state(torch.stack(place, 1).to(self.values))


def picture(name: str, *, n_nodes: int = 121) -> Float64[Tensor, "n n"]:
    """A picture on a square grid over |x|, |y| <= EXTENT: soft strokes of brightness about 1 on a faint ground.

    Args:
        name: "face" (an outline, two eyes, a mouth), "spiral" (one arm that fades), or "chart" (rows of bars that get
            finer).
        n_nodes: Nodes along each side.

    Returns:
        Brightness, first index x, second y; positive everywhere.

    Raises:
        UnknownNameError: If there is no such picture.
    """
    if name not in PICTURES:
        raise UnknownNameError(f"picture: unknown name {name!r}; {nearest(name, PICTURES)}")
    axis = torch.linspace(-EXTENT, EXTENT, n_nodes, dtype=torch.float64)
    x, y = torch.meshgrid(axis, axis, indexing="ij")
    ground = 0.01 * torch.exp(-(x**2 + y**2) / 8)
    return PICTURES[name](x, y) + ground + 1e-5


def _stroke(distance: Tensor, width: float) -> Tensor:
    """Brightness of a line of a given half-width at a distance from its middle, with soft edges."""
    return torch.sigmoid((width - distance) / 0.04)


def _face(x: Tensor, y: Tensor) -> Tensor:
    radius = torch.hypot(x, y)
    outline = _stroke((radius - 2.3).abs(), 0.12)
    eyes = sum(_stroke(torch.hypot(x - side * 0.8, y - 0.7), 0.28) for side in (-1, 1))
    angle = torch.atan2(y, x)
    mouth = _stroke((radius - 1.35).abs(), 0.1) * torch.sigmoid((-0.6 - torch.sin(angle)) / 0.05)
    return outline + eyes + mouth


def _spiral(x: Tensor, y: Tensor) -> Tensor:
    radius, angle = torch.hypot(x, y), torch.atan2(y, x)
    # the arm r = a (angle + 2 pi k): distance to the nearest turn
    pitch = 0.8
    turn = radius / pitch - angle / (2 * math.pi)
    distance = pitch * (turn - turn.round()).abs()
    return _stroke(distance, 0.1) * torch.sigmoid((2.5 - radius) / 0.1) * torch.exp(-radius / 2)


def _chart(x: Tensor, y: Tensor) -> Tensor:
    rows = torch.zeros_like(x)
    for centre, half, period in ((1.6, 0.6, 1.5), (0.1, 0.4, 0.9), (-1.1, 0.3, 0.6), (-2.0, 0.2, 0.4)):
        bars = _stroke((x / period - (x / period).round()).abs() * period, 0.25 * period)
        rows = rows + bars * _stroke((y - centre).abs(), half) * _stroke(x.abs(), 2.4)
    return rows


PICTURES = {"face": _face, "spiral": _spiral, "chart": _chart}
"""Names of the pictures."""
