"""Checks of Bijections: round trip and log-ratio against the autograd Jacobian."""

import torch

from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.testing._compare import difference, fail, floating, tangent, tolerance_for
from boltzflow.transitions.transition import Bijection

__all__ = ["assert_invertible", "assert_log_ratio"]


def assert_invertible(bijection: Bijection, state: State, run: Run, *, tolerance: float | None = None) -> None:
    """Check that `reverse` undoes `forward` and the other way round, and that their log-ratios cancel.

    Args:
        bijection: What is tested.
        state: Points in its domain.
        run: Handed on.
        tolerance: On |x' − x| / (1 + |x|) and on the sum of the log-ratios; None = 1e-8 in float64, 1e-3 in float32.

    Raises:
        AssertionError: If a round trip misses, or the log-ratios do not cancel.
    """
    tolerance = tolerance_for(state, tolerance)
    name = type(bijection).__name__
    with torch.no_grad():
        y, ratio = bijection.forward(state, run)
        back, minus_ratio = bijection.reverse(y, run)
        again, ratio_again = bijection.forward(back, run)
    for what, found, expected in (("reverse(forward(x))", back, state), ("forward(reverse(y))", again, y)):
        rows, field = difference(found, expected)
        if not rows.max() <= tolerance:
            fail(
                f"{name}: {what} misses by {rows.max().item():.3g} in field {field!r}, row {int(rows.argmax())} "
                f"(tolerance {tolerance:g})."
            )
    for what, one in (("forward", ratio), ("repeated forward", ratio_again)):
        rest = (one + minus_ratio).abs()
        if not rest.max() <= tolerance * max(1.0, ratio.abs().max().item()):
            fail(
                f"{name}: {what} and reverse log-ratios sum to {rest.max().item():.3g} in row {int(rest.argmax())}, "
                "not to 0."
            )


def assert_log_ratio(bijection: Bijection, state: State, run: Run, *, tolerance: float | None = None) -> None:
    """Check the log-ratio of `forward` against the Jacobian of all floating-point fields that autograd computes.

    Where a field has fewer dimensions than entries (mean-free positions, unit vectors), the Jacobian is restricted to
    the directions along which it can move. It costs one backward pass per output entry.

    Args:
        bijection: What is tested.
        state: Points in its domain.
        run: Handed on.
        tolerance: On |r − log|det J|| / max(1, |r|); None = 1e-8 in float64, 1e-3 in float32.

    Raises:
        AssertionError: If the log-ratio has a wrong value, shape or dtype.
    """
    tolerance = tolerance_for(state, tolerance)
    name = type(bijection).__name__
    leaves = {key: value.detach().clone().requires_grad_() for key, value in floating(state).items()}
    with torch.enable_grad():
        y, ratio = bijection.forward(state.replace(**leaves), run)
        if ratio.dtype != torch.float64 or ratio.shape != (len(state),):
            fail(f"{name}: expected a float64 log-ratio of shape ({len(state)},), got {ratio.dtype} {(*ratio.shape,)}.")
        flat = torch.cat([v.flatten(1) for v in floating(y).values()], 1)
        rows = []
        for k in range(flat.shape[1]):
            gradients = (
                torch.autograd.grad(flat[:, k].sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
                if flat[:, k].requires_grad
                else [None] * len(leaves)
            )
            rows.append(
                torch.cat(
                    [
                        (torch.zeros_like(x) if g is None else g).flatten(1)
                        for x, g in zip(leaves.values(), gradients, strict=True)
                    ],
                    1,
                )
            )
    jacobian = torch.stack(rows, 1).double() @ tangent(state)
    if jacobian.shape[1] < jacobian.shape[2]:
        fail(f"{name}: maps {jacobian.shape[2]} dimensions to {jacobian.shape[1]} entries, which has no inverse.")
    expected = torch.linalg.qr(jacobian).R.diagonal(dim1=1, dim2=2).abs().log().sum(1)
    off = (ratio.detach() - expected).abs() / expected.abs().clamp_min(1.0)
    if not off.max() <= tolerance:
        row = int(torch.nan_to_num(off, nan=torch.inf).argmax())
        fail(
            f"{name}: log-ratio {ratio[row].item():.10g} in row {row}, but the Jacobian gives "
            f"{expected[row].item():.10g} (relative tolerance {tolerance:g})."
        )
