"""Conditioned splines from raw network outputs: one fused kernel forward, one backward, compiled where possible."""

import functools
import math
from typing import no_type_check

import torch

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.transitions.compiled import attempt, compiler, run_elementwise
from boltzflow.transitions.splines import from_unit, rq_bin, rq_bin_inverse, select_bin, to_unit, unit_scale, wrap_unit

__all__ = ["conditioned_spline", "lookup_score", "lookup_spline", "n_spline_parameters", "positive", "spline_score"]

_TURN = 1.0 / (2.0 * math.pi)
_compiler = compiler  # its switch under the name by which callers know it here


def n_spline_parameters(bins: int) -> int:
    """Raw parameters per coordinate: widths, heights, one derivative per knot (on circles the last is a rotation)."""
    return 3 * bins + 1


def conditioned_spline(
    x: Float[Tensor, "dims batch"],
    raw: Float[Tensor, "parameters dims batch"],
    line: Bool[Tensor, "dims 1"],
    circle: Bool[Tensor, "dims 1"],
    *,
    inverse: bool = False,
    bound: float = 5.0,
    period: float = 2.0 * math.pi,
    min_bin: float = 1e-3,
    min_derivative: float = 1e-3,
    fused: bool = True,
) -> tuple[Float[Tensor, "dims batch"], Float[Tensor, "dims batch"]]:
    """Splines of many coordinates of mixed kind from unconstrained parameters; all zero is the identity.

    Interval coordinates outside [0, 1] give NaN. A line is left as it is beyond ±bound, with derivative one there. A
    circle is wrapped to (−period/2, period/2], has equal derivatives on both sides of its cut, and is rotated after
    the spline by the last raw parameter (2π is one turn).

    The batch is innermost and the parameters outermost: the bins are unrolled as rows, so that one loop over (dims,
    batch) does softmax, cumulative sums, bin selection and the rational-quadratic function in registers. The backward
    pass is the closed form in one more such loop; it recomputes the bins instead of saving them. Both have an eager
    twin (the same functions, not compiled), used when there is no working compiler (one logged line) and for a single
    element.

    Args:
        x: Points, batch innermost.
        raw: `n_spline_parameters(bins)` rows: bins widths, bins heights, bins + 1 derivatives.
        line: Which coordinates are lines.
        circle: Which are circles; neither means interval.
        inverse: Map y to x.
        bound: Half-length of the part of a line that is bent.
        period: Length of a circle.
        min_bin: Smallest width and height of a bin, as a fraction of the interval.
        min_derivative: Smallest derivative at a knot, for u.
        fused: Use the closed-form backward pass. False differentiates the eager operations instead, for torch.func
            transforms.

    Returns:
        Image and log-derivative of the direction that was asked for, elementwise.
    """
    bins = (raw.shape[0] - 1) // 3
    if raw.shape[0] != n_spline_parameters(bins) or bins < 1 or bins * min_bin >= 1.0:
        raise ValueError(
            "conditioned_spline: expected 3·bins + 1 raw parameters with bins·min_bin < 1, "
            f"got {raw.shape[0]} and min_bin={min_bin}."
        )
    constants = (bins, min_bin, min_derivative, bound, period, inverse)
    if fused:
        return _Spline.apply(x, raw, line, circle, constants)
    return _forward_kernel(raw, x, line, circle, *constants)


def spline_score(
    score: Float[Tensor, "dims batch"],
    x: Float[Tensor, "dims batch"],
    raw: Float[Tensor, "parameters dims batch"],
    line: Bool[Tensor, "dims 1"],
    circle: Bool[Tensor, "dims 1"],
    *,
    bound: float,
    period: float,
    min_bin: float,
    min_derivative: float,
) -> tuple[Float[Tensor, "dims batch"], Float[Tensor, "parameters dims batch"]]:
    """Gradients of log q(x) + log dx/dy at fixed y, by y and by the raw parameters: the score after the spline.

    They are what the backward pass of the inverse spline gives, at the point x that is known already.

    Args:
        score: ∂_x log q.
        x: Points before the spline, as in `conditioned_spline`.
        raw: Raw parameters.
        line: Which coordinates are lines.
        circle: Which are circles; neither means interval.
        bound: See `conditioned_spline`, as all others.
        period: Length of a circle.
        min_bin: Smallest bin.
        min_derivative: Smallest derivative at a knot.
    """
    constants = ((raw.shape[0] - 1) // 3, min_bin, min_derivative, bound, period, True)
    with torch.no_grad():
        return run_elementwise(_backward_kernel, constants, raw, x, line, circle, score, score.new_ones(1, 1))


def _differentiable(ctx, outputs: tuple, inputs: tuple, grads: tuple) -> list[Tensor | None]:
    """Gradients with a graph of their own, for those of the first inputs that need them."""
    needed = ctx.needs_input_grad[: len(inputs)]
    wanted = [tensor for tensor, need in zip(inputs, needed, strict=True) if need]
    found = iter(torch.autograd.grad(outputs, wanted, grads, create_graph=True, materialize_grads=True))
    return [next(found) if need else None for need in needed]


def lookup_spline(
    x: Float[Tensor, "dims batch"],
    knots: tuple[Float[Tensor, "dims knots"], Float[Tensor, "dims knots"], Float[Tensor, "dims knots"]],
    turn: Float[Tensor, "dims 1"],
    line: Bool[Tensor, "dims 1"],
    circle: Bool[Tensor, "dims 1"],
    *,
    inverse: bool = False,
    bound: float = 5.0,
    period: float = 2.0 * math.pi,
    fused: bool = True,
) -> tuple[Float[Tensor, "dims batch"], Float[Tensor, "dims batch"]]:
    """Splines of many points with the same knots: looked up, where `conditioned_spline` works them out for every point.

    Args:
        x: Points, batch innermost.
        knots: Abscissae, ordinates (both from 0 to 1) and derivatives at the knots of each coordinate.
        turn: Rotation of the circles after the spline, in turns; zero elsewhere.
        line: Which coordinates are lines.
        circle: Which are circles; neither means interval.
        inverse: Map y to x.
        bound: Half-length of the part of a line that is bent.
        period: Length of a circle.
        fused: See `conditioned_spline`.

    Returns:
        Image and log-derivative of the direction that was asked for, elementwise.
    """
    if inverse:
        x, turn = x - turn * period, torch.zeros_like(turn)
    index = _bin_index(x, knots[1 if inverse else 0], line, circle, bound, period, fused=fused)
    table = _ends(knots)
    if fused:
        return _Lookup.apply(x, table, turn, line, circle, index, (bound, period, inverse))
    edges = table.gather(2, index.expand(6, *index.shape))
    return _bin_kernel(edges, x, turn, line, circle, bound, period, inverse)


def lookup_score(
    score: Float[Tensor, "dims batch"],
    x: Float[Tensor, "dims batch"],
    knots: tuple[Float[Tensor, "dims knots"], Float[Tensor, "dims knots"], Float[Tensor, "dims knots"]],
    line: Bool[Tensor, "dims 1"],
    circle: Bool[Tensor, "dims 1"],
    *,
    bound: float,
    period: float,
) -> Float[Tensor, "dims batch"]:
    """Gradient of log q(x) + log dx/dy by y: what `spline_score` is for splines with the same knots.

    Args:
        score: ∂_x log q.
        x: Points before the spline, as in `lookup_spline`; the rotation of a circle changes nothing.
        knots: See `lookup_spline`, as all others.
        line: Which coordinates are lines.
        circle: Which are circles.
        bound: Half-length of the part of a line that is bent.
        period: Length of a circle.
    """
    with torch.no_grad():
        index = _bin_index(x, knots[0], line, circle, bound, period, fused=True)
        edges = _ends(knots).gather(2, index.expand(6, *index.shape))
        one = score.new_ones(1, 1)
        return run_elementwise(_bin_backward_kernel, (bound, period, True), edges, x, line, circle, score, one)[0]


def _bin_index(
    x: Tensor, knots: Tensor, line: Tensor, circle: Tensor, bound: float, period: float, *, fused: bool
) -> Tensor:
    inner = knots[:, 1:-1].t()[..., None].detach().contiguous()
    located = [x.detach(), inner, line, circle]
    index = attempt(_locate_kernel, (bound, period), located) if fused and len(inner) > 1 else None
    return _locate_kernel(*located, bound, period) if index is None else index


def _ends(knots: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Left and right end of every bin in abscissa, ordinate and derivative, (6, dims, bins)."""
    return torch.stack([side for column in knots for side in (column[:, :-1], column[:, 1:])])


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, table, turn, line, circle, index, constants):
        edges = table.gather(2, index.expand(6, *index.shape))
        y, log_derivative = run_elementwise(_bin_kernel, constants, edges, x, turn, line, circle)
        ctx.save_for_backward(x, y if constants[-1] else x, table, turn, line, circle, index)
        ctx.constants = constants
        return y, log_derivative

    @staticmethod
    def backward(ctx, grad_y, grad_log):
        x, point, table, turn, line, circle, index = ctx.saved_tensors
        index = index.expand(6, *index.shape)
        edges = table.gather(2, index)
        if not torch.is_grad_enabled():
            grad_x, rows = run_elementwise(
                _bin_backward_kernel, ctx.constants, edges, point, line, circle, grad_y, grad_log
            )
            grad_table = torch.zeros_like(table).scatter_add_(2, index, rows[:6])
            grad_turn = rows[6].sum(-1, keepdim=True)
        else:  # create_graph: see _Spline
            outputs = _bin_kernel(edges, x, turn, line, circle, *ctx.constants)
            grad_x, grad_table, grad_turn = _differentiable(ctx, outputs, (x, table, turn), (grad_y, grad_log))
        return grad_x, grad_table, grad_turn, None, None, None, None


class _Spline(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, raw, line, circle, constants):
        y, log_derivative = run_elementwise(_forward_kernel, constants, raw, x, line, circle)
        ctx.save_for_backward(x, y if constants[-1] else x, raw, line, circle)
        ctx.constants = constants
        return y, log_derivative

    @staticmethod
    def backward(ctx, grad_y, grad_log):
        x, point, raw, *kinds = ctx.saved_tensors
        if not torch.is_grad_enabled():
            grad_x, grad_raw = run_elementwise(_backward_kernel, ctx.constants, raw, point, *kinds, grad_y, grad_log)
        else:  # create_graph: differentiate the eager operations, which carry second derivatives
            outputs = _forward_kernel(raw, x, *kinds, *ctx.constants)
            grad_x, grad_raw = _differentiable(ctx, outputs, (x, raw), (grad_y, grad_log))
        return grad_x, grad_raw, None, None, None


@no_type_check
def positive(raw, minimum):
    """Softplus above a minimum, shifted so that zero gives one."""
    return minimum + torch.nn.functional.softplus(raw + math.log(math.expm1(1.0 - minimum)))


@no_type_check
def _knots(rows, minimum):
    """Probabilities and the inner knots of bins minimum + (1 − K minimum) softmax."""
    highest = functools.reduce(torch.maximum, rows)
    exponentials = [torch.exp(row - highest) for row in rows]
    cumulative = [exponentials[0]]
    for e in exponentials[1:]:
        cumulative.append(cumulative[-1] + e)
    rescale = (1.0 - len(rows) * minimum) / cumulative[-1]
    inner = [c * rescale + k * minimum for k, c in enumerate(cumulative[:-1], start=1)]
    return [e * rescale for e in exponentials], inner


@no_type_check
def _bins(u, raw, line, circle, bins, min_bin, min_derivative, inverse):
    """Selected bin of every point: knots, raw derivatives, and what the backward pass needs of the softmax."""
    x_probabilities, x_inner = _knots([raw[k] for k in range(bins)], min_bin)
    y_probabilities, y_inner = _knots([raw[bins + k] for k in range(bins)], min_bin)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    first = torch.where(line, zero, raw[2 * bins])
    last = torch.where(line, zero, torch.where(circle, raw[2 * bins], raw[3 * bins]))
    columns = (
        [zero, *x_inner, one],
        [zero, *y_inner, one],
        [first, *[raw[2 * bins + k] for k in range(1, bins)], last],
        [zero + float(k) for k in range(bins + 1)],
    )
    picked = select_bin(u, y_inner if inverse else x_inner, columns)
    (left, right), (bottom, top), (r0, r1), (index, _) = picked
    edges = (left, right, bottom, top, positive(r0, min_derivative), positive(r1, min_derivative))
    return edges, index, x_probabilities, y_probabilities


@no_type_check
def _forward_kernel(raw, x, line, circle, bins, min_bin, min_derivative, bound, period, inverse):
    turn = raw[3 * bins] * _TURN
    u, inside = to_unit(torch.where(circle, x - turn * period, x) if inverse else x, line, circle, bound, period)
    edges, *_ = _bins(u, raw, line, circle, bins, min_bin, min_derivative, inverse)
    v, log_derivative = (rq_bin_inverse if inverse else rq_bin)(u, *edges)
    if not inverse:
        v = torch.where(circle, wrap_unit(v + turn), v)
    return from_unit(v, log_derivative, x, inside, line, circle, bound, period)


@no_type_check
def _backward_kernel(raw, point, line, circle, grad_y, grad_log, bins, min_bin, min_derivative, bound, period, inverse):
    """Closed-form vector-Jacobian product at the point on the input side (the image, when the spline ran inversely)."""
    u, inside = to_unit(point, line, circle, bound, period)
    edges, index, x_probabilities, y_probabilities = _bins(
        u, raw, line, circle, bins, min_bin, min_derivative, inverse=False
    )
    grad_x, in_x, in_y, g_d0, g_d1 = _pull_back(
        u, inside, edges, grad_y, grad_log, line, circle, bound, period, inverse
    )
    left, right, bottom, top, d0, d1 = edges
    g_d0 = g_d0 * (1.0 - torch.exp(min_derivative - d0))
    g_d1 = g_d1 * (1.0 - torch.exp(min_derivative - d1))

    rows = _softmax_gradient(x_probabilities, index, *in_x, left, right - left, min_bin)
    rows += _softmax_gradient(y_probabilities, index, *in_y, bottom, top - bottom, min_bin)
    zero = torch.zeros_like(u)
    at_knot = [
        torch.where(index == float(k), g_d0, torch.where(index == float(k - 1), g_d1, zero)) for k in range(bins + 1)
    ]
    at_knot[0] = torch.where(line, zero, at_knot[0] + torch.where(circle, at_knot[bins], zero))
    at_knot[bins] = torch.where(line, zero, torch.where(circle, in_y[0] * _TURN, at_knot[bins]))
    return grad_x, torch.stack(rows + at_knot)


@no_type_check
def _pull_back(u, inside, edges, grad_y, grad_log, line, circle, bound, period, inverse):
    """Gradients with respect to x, (start, size) of the bin in x and in y, and the derivatives at its ends."""
    left, right, bottom, top, d0, d1 = edges
    width, height = right - left, top - bottom
    s = height / width
    xi = (u - left) / width
    eta = 1.0 - xi
    p = xi * eta
    inv_den = 1.0 / (s * (xi * xi + eta * eta) + (d0 + d1) * p)
    slope = d1 * xi * xi + 2.0 * s * p + d0 * eta * eta
    inv_slope = 1.0 / slope
    ratio = xi * (s * xi + d0 * eta) * inv_den
    ratio_xi = s * slope * inv_den * inv_den
    derivative = s * ratio_xi
    log_xi = 2.0 * ((d1 * xi - d0 * eta + s * (eta - xi)) * inv_slope - (d0 + d1 - 2.0 * s) * (eta - xi) * inv_den)

    # An inverse x(y, θ) of f(x, θ) = y has dx = (dy − f_θ dθ)/f_x and log-derivative −log f_x(x, θ).
    grad_unit = torch.where(inside, unit_scale(grad_y, line, circle, bound, period), 0.0)
    g_log = torch.where(inside, grad_log, torch.zeros_like(u))
    if inverse:
        g_value = -(grad_unit - g_log * log_xi / width) / derivative
        g_log = -g_log
        grad_point = -g_value
    else:
        g_value = grad_unit
        grad_point = g_value * derivative + g_log * log_xi / width
    grad_x = torch.where(
        inside, unit_scale(grad_point, line, circle, 0.25 / bound, 1.0 / period), torch.where(line, grad_y, 0.0)
    )

    g_ratio = g_value * height
    g_xi = (g_ratio * ratio_xi + g_log * log_xi) / width
    g_s = (
        g_ratio * (xi * xi - ratio * (xi * xi + eta * eta)) * inv_den
        + g_log * (2.0 / s + 2.0 * p * inv_slope - 2.0 * (1.0 - 2.0 * p) * inv_den)
    ) / width
    g_d0 = (g_ratio * p * (1.0 - ratio) - 2.0 * g_log * p) * inv_den + g_log * eta * eta * inv_slope
    g_d1 = (-g_ratio * ratio * p - 2.0 * g_log * p) * inv_den + g_log * xi * xi * inv_slope
    return grad_x, (-g_xi, -g_xi * xi - g_s * s), (g_value, g_value * ratio + g_s), g_d0, g_d1


@no_type_check
def _softmax_gradient(probabilities, index, g_start, g_size, start, size, minimum):
    """Gradient with respect to the raw rows, given those with respect to start and size of the selected bin."""
    mean = g_start * (start - index * minimum) + g_size * (size - minimum)
    total = 1.0 - len(probabilities) * minimum
    return [
        p
        * (
            torch.where(index > float(k), g_start, torch.where(index == float(k), g_size, torch.zeros_like(size)))
            - mean / total
        )
        for k, p in enumerate(probabilities)
    ]


@no_type_check
def _locate_kernel(x, inner, line, circle, bound, period):
    u, _ = to_unit(x, line, circle, bound, period)
    # counted in the dtype of u: converting every comparison to an integer is slower
    return (u >= inner).to(u.dtype).sum(0).long()


@no_type_check
def _bin_kernel(edges, x, turn, line, circle, bound, period, inverse):
    u, inside = to_unit(x, line, circle, bound, period)
    v, log_derivative = (rq_bin_inverse if inverse else rq_bin)(u, *[edges[k] for k in range(6)])
    if not inverse:
        v = torch.where(circle, wrap_unit(v + turn), v)
    return from_unit(v, log_derivative, x, inside, line, circle, bound, period)


@no_type_check
def _bin_backward_kernel(edges, point, line, circle, grad_y, grad_log, bound, period, inverse):
    u, inside = to_unit(point, line, circle, bound, period)
    edges = [edges[k] for k in range(6)]
    grad_x, in_x, in_y, g_d0, g_d1 = _pull_back(
        u, inside, edges, grad_y, grad_log, line, circle, bound, period, inverse
    )
    sides = [side for start, size in (in_x, in_y) for side in (start - size, size)]
    return grad_x, torch.stack([*sides, g_d0, g_d1, in_y[0]])
