"""Monotone rational-quadratic splines on interval, line and circle, as pure functions of knots and derivatives."""

from collections.abc import Sequence
from typing import no_type_check

import torch

from boltzflow._typing import Bool, Float, Tensor

__all__ = [
    "KINDS",
    "from_unit",
    "kind_masks",
    "rq_bin",
    "rq_bin_inverse",
    "rq_spline",
    "rq_spline_circle",
    "rq_spline_line",
    "select_bin",
    "to_unit",
    "unit_scale",
    "wrap_unit",
]

KINDS = ("circle", "interval", "line")

# The functions without annotations are elementwise: any tensors that broadcast will do. Bins are lists of rows, not an
# axis: unrolled, everything vectorises over what remains, and a chain of `where` replaces the search and the gathers.
# They run inside compiled regions, where the tests' type checker must not wrap them: hence `no_type_check`.


@no_type_check
def rq_bin(x, left, right, bottom, top, d_left, d_right):
    """Rational-quadratic function of one bin and the logarithm of its derivative.

    With ξ = (x − left)/width, s = height/width: y = bottom + height (s ξ² + d_left ξ(1−ξ)) / (s + (d_left + d_right −
    2s) ξ(1−ξ)), written with positive terms only.

    Args:
        x: Points in [left, right].
        left: Abscissa of its left end.
        right: Abscissa of its right end.
        bottom: Ordinate of its left end.
        top: Ordinate of its right end.
        d_left: Derivative at its left end, positive.
        d_right: Derivative at its right end, positive.

    Returns:
        y in [bottom, top] and log dy/dx, of the broadcast shape.

    References:
        Neural Spline Flows (Durkan et al., 2019), eqs. 4-5, https://arxiv.org/abs/1906.04032
    """
    width, height = right - left, top - bottom
    s = height / width
    xi = (x - left) / width
    eta = 1.0 - xi
    p = xi * eta
    ss = s * (xi * xi + eta * eta)
    denominator = ss + (d_left + d_right) * p
    ratio = xi * (s * xi + d_left * eta) / denominator
    slope = d_right * xi * xi + 2.0 * s * p + d_left * eta * eta
    # bottom + height may round to one ulp above top, which the next layer would find outside its domain
    return torch.minimum(bottom + height * ratio, top), torch.log(slope * (s / denominator) ** 2)


@no_type_check
def rq_bin_inverse(y, left, right, bottom, top, d_left, d_right):
    """Inverse of `rq_bin` and the logarithm of its derivative, −log dy/dx.

    With r = (y − bottom)/height and q = d_left (1−r) − d_right r the discriminant of eq. 29 is q² + 4 r(1−r) s², a sum
    of squares: no cancellation. The root is taken in the form that adds positive numbers only, for either sign of q.

    Args:
        y: Points in [bottom, top].
        left: Abscissa of its left end.
        right: Abscissa of its right end.
        bottom: Ordinate of its left end.
        top: Ordinate of its right end.
        d_left: Derivative at its left end, positive.
        d_right: Derivative at its right end, positive.

    Returns:
        x in [left, right] and log dx/dy, of the broadcast shape.

    References:
        Neural Spline Flows (Durkan et al., 2019), eqs. 25-29, https://arxiv.org/abs/1906.04032
    """
    width, height = right - left, top - bottom
    s = height / width
    r = (y - bottom) / height
    t = 1.0 - r
    q = d_left * t - d_right * r
    a = torch.sqrt(q * q + 4.0 * r * t * s * s) + torch.abs(q)
    rising = q >= 0
    numerator = torch.where(rising, 2.0 * r * s, a)
    rest = torch.where(rising, a, 2.0 * t * s)
    xi = numerator / (numerator + rest)
    eta = rest / (numerator + rest)
    p = xi * eta
    denominator = s * (xi * xi + eta * eta) + (d_left + d_right) * p
    slope = d_right * xi * xi + 2.0 * s * p + d_left * eta * eta
    return torch.minimum(left + width * xi, right), -torch.log(slope * (s / denominator) ** 2)


@no_type_check
def select_bin(value, inner_knots, columns):
    """For each value the entries that belong to its bin, by comparison with the K − 1 inner knots.

    A value at a knot belongs to the bin on its right.

    Args:
        value: Any shape.
        inner_knots: K − 1 ascending rows that broadcast with it.
        columns: Lists of K + 1 rows (one entry per knot).

    Returns:
        For every column the pair of entries at the left and at the right end of the bin.
    """
    picked = [(column[0], column[1]) for column in columns]
    for k, knot in enumerate(inner_knots, start=1):
        beyond = value >= knot
        picked = [
            (torch.where(beyond, column[k], left), torch.where(beyond, column[k + 1], right))
            for column, (left, right) in zip(columns, picked, strict=True)
        ]
    return picked


def rq_spline(
    x: Float[Tensor, "*shape"],
    widths: Float[Tensor, "bins *shape"],
    heights: Float[Tensor, "bins *shape"],
    derivatives: Float[Tensor, "knots *shape"],
    *,
    inverse: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Monotone rational-quadratic spline of the unit interval onto itself.

    Args:
        x: Points in [0, 1]; anything else gives NaN in both outputs (no check is made on the host).
        widths: Bin widths, positive, summing to one over the first axis.
        heights: Bin heights, positive, summing to one over the first axis.
        derivatives: Positive derivatives at the bins + 1 knots, both ends included.
        inverse: Map y to x.

    Returns:
        The image and the logarithm of the derivative of the direction that was asked for.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032

    Example:
        >>> half = torch.full((2, 1), 0.5)
        >>> y, log_derivative = rq_spline(torch.tensor([0.25]), half, half, torch.ones(3, 1))
        >>> y, log_derivative
        (tensor([0.2500]), tensor([0.]))
    """
    zero, one = torch.zeros_like(widths[0]), torch.ones_like(widths[0])
    x_knots = [zero, *widths.cumsum(0)[:-1].unbind(0), one]
    y_knots = [zero, *heights.cumsum(0)[:-1].unbind(0), one]
    value = x.clamp(0.0, 1.0)
    columns = (x_knots, y_knots, derivatives.unbind(0))
    (left, right), (bottom, top), (d0, d1) = select_bin(value, (y_knots if inverse else x_knots)[1:-1], columns)
    y, log_derivative = (rq_bin_inverse if inverse else rq_bin)(value, left, right, bottom, top, d0, d1)
    inside = (x >= 0.0) & (x <= 1.0)
    return torch.where(inside, y, torch.nan), torch.where(inside, log_derivative, torch.nan)


def rq_spline_line(
    x: Float[Tensor, "*shape"],
    widths: Float[Tensor, "bins *shape"],
    heights: Float[Tensor, "bins *shape"],
    derivatives: Float[Tensor, "inner *shape"],
    *,
    bound: float = 5.0,
    inverse: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Spline of [−bound, bound] onto itself with derivative one at both ends, continued by the identity.

    Args:
        x: Points on the line.
        widths: Bin widths as fractions of 2·bound, summing to one over the first axis.
        heights: Bin heights as fractions of 2·bound, summing to one over the first axis.
        derivatives: Positive derivatives at the bins − 1 inner knots.
        bound: Half-length of the part that is bent, in the unit of x.
        inverse: Map y to x.

    Returns:
        The image and the logarithm of the derivative of the direction that was asked for.

    References:
        Neural Spline Flows (Durkan et al., 2019), https://arxiv.org/abs/1906.04032
    """
    one, line, circle = (
        torch.ones_like(widths[:1]),
        torch.ones_like(x, dtype=torch.bool),
        torch.zeros_like(x, dtype=torch.bool),
    )
    u, inside = to_unit(x, line, circle, bound, 1.0)
    v, log_derivative = rq_spline(u, widths, heights, torch.cat([one, derivatives, one]), inverse=inverse)
    return from_unit(v, log_derivative, x, inside, line, circle, bound, 1.0)


def rq_spline_circle(
    x: Float[Tensor, "*shape"],
    widths: Float[Tensor, "bins *shape"],
    heights: Float[Tensor, "bins *shape"],
    derivatives: Float[Tensor, "bins *shape"],
    *,
    shift: Float[Tensor, "*shape"] | float = 0.0,
    period: float = 2.0 * torch.pi,
    inverse: bool = False,
) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
    """Spline of a circle onto itself, followed by a rotation.

    Args:
        x: Points on the circle; any representative is accepted.
        widths: Bin widths as fractions of the period, summing to one over the first axis.
        heights: Bin heights as fractions of the period, summing to one over the first axis.
        derivatives: Positive derivatives at the bins knots of the circle (the first stands at the cut, ±period/2).
        shift: Rotation after the spline, in the unit of x.
        period: Length of the circle.
        inverse: Map y to x.

    Returns:
        The image in (−period/2, period/2] and the logarithm of the derivative of the direction that was asked for.

    References:
        Normalizing Flows on Tori and Spheres (Rezende et al., 2020), section 2.1.2, https://arxiv.org/abs/2002.02428
    """
    closed = torch.cat([derivatives, derivatives[:1]])
    if inverse:
        x = x - shift
    v, log_derivative = rq_spline(wrap_unit(x / period + 0.5), widths, heights, closed, inverse=inverse)
    y = (v - 0.5) * period
    if not inverse:
        y = (wrap_unit((y + shift) / period + 0.5) - 0.5) * period
    return y, log_derivative


def kind_masks(kinds: Sequence[str]) -> dict[str, Bool[Tensor, "d 1"]]:
    """Which coordinates are lines and which are circles; the rest are intervals.

    Args:
        kinds: "circle", "interval" or "line" for each of d coordinates.

    Returns:
        The masks "line" and "circle", to be broadcast over a batch on the last axis.

    Raises:
        ValueError: If a kind is none of the three.
    """
    unknown = sorted(set(kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"Kinds of coordinates must be among {KINDS}, got {unknown}.")
    return {name: torch.tensor([[kind == name] for kind in kinds]) for name in ("line", "circle")}


@no_type_check
def wrap_unit(u):
    """Representative in (0, 1] of points on the circle of length one; exact for points that are there already."""
    return u - (torch.ceil(u) - 1.0)


@no_type_check
def to_unit(x, line, circle, bound, period):
    """Coordinates on the unit interval.

    (x + bound)/2bound on a line, x/period + 1/2 wrapped on a circle, x itself on an interval.

    Args:
        x: Points.
        line: Where the coordinate is a line.
        circle: Where it is a circle; neither means interval.
        bound: Half-length of the bent part of a line.
        period: Length of a circle.

    Returns:
        u clamped to [0, 1], and whether it was there.
    """
    u = torch.where(line, x / (2.0 * bound) + 0.5, torch.where(circle, wrap_unit(x / period + 0.5), x))
    return u.clamp(0.0, 1.0), (u >= 0.0) & (u <= 1.0)


@no_type_check
def from_unit(v, log_derivative, x, inside, line, circle, bound, period):
    """Back from the unit interval: what was outside it is left as it is on a line, and NaN elsewhere.

    Args:
        v: Image on the unit interval.
        log_derivative: Its log-derivative.
        x: Original points.
        inside: Whether they were inside, as `to_unit` says.
        line: See `to_unit`.
        circle: See `to_unit`.
        bound: See `to_unit`.
        period: See `to_unit`.

    Returns:
        The image and the log-derivative.
    """
    y = torch.where(
        inside,
        unit_scale(torch.where(line | circle, v - 0.5, v), line, circle, bound, period),
        torch.where(line, x, torch.nan),
    )
    # x - x: zero, and NaN where x is not finite
    return y, torch.where(inside, log_derivative, torch.where(line, x - x, torch.nan))


@no_type_check
def unit_scale(v, line, circle, bound, period):
    """V times the length of its domain."""
    return torch.where(line, v * (2.0 * bound), torch.where(circle, v * period, v))
