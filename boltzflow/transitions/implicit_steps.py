"""ImplicitSteps: backward Euler steps along a vector field, whose inverses are explicit."""

from collections.abc import Callable, Iterator

import torch

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.state import Space, State
from boltzflow.transitions.metropolis import moves_centre
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Transition

__all__ = ["ImplicitSteps", "fixed_point"]

MAX_ITERATIONS = 100

EXTRAPOLATION = ((), (1.0,), (2.0, -1.0), (3.0, -3.0, 1.0))
"""Of a smooth series by its last values, the latest first."""


class ImplicitSteps(Transition):
    """Steps x_k → x_{k+1} with x_{k+1} − v(x_{k+1}, t_{k+1})/n = x_k, t_k = k/n; subclasses say what weighs them.

    A step that is the inverse of an explicit one, because flow perturbation needs A = ∂x_k/∂x_{k+1}: of the explicit
    inverse that is one Jacobian-vector product. Along explicit steps A e would be the solution of a linear system, with
    such a product in each of as many iterations as the fixed point x_{k+1} takes here, at an evaluation of v each.

    Fixed-point iteration ends at round-off and converges only where v/n contracts: 1 − ∂v/∂x/n then has a positive
    determinant. Rows that do not converge are failures of the model, with a log-ratio of NaN; more steps are the
    remedy.

    Positions are not wrapped into the box. Where the space of the field has no centre of mass, that of v is removed.

    Args:
        field: The velocities.
        n_steps: Steps.
        name: Name of the State's field of positions (batch, N, D), or of a flat one (batch, d).
    """

    def __init__(self, field: VectorField, *, n_steps: int = 1, name: str = "positions") -> None:
        super().__init__()
        self.field, self.name = field, name
        self.n_steps = at_least_one(f"{type(self).__name__} n_steps", n_steps)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds its references."""
        return (type(self).__name__, *self.field.methods)

    def along(self, x: Float[Tensor, "batch *event"], space: Space) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Step after step from x: which one, where it ends, and where that was found.

        The drifts of the steps before, extrapolated to second order, are where every solution starts.

        Args:
            x: Where the first step starts.
            space: Of the field.
        """
        drifts: list[Tensor] = []
        for k in range(self.n_steps):
            guess = sum((c * d for c, d in zip(EXTRAPOLATION[len(drifts)], drifts, strict=True)), 0.0)
            y, found = self.step(x, k, space, drift=guess)
            drifts, x = [(y - x).detach(), *drifts[:2]], y
            yield k, y, found

    def step(
        self, x: Float[Tensor, "batch *event"], k: int, space: Space, *, drift: Tensor | float = 0.0
    ) -> tuple[Float[Tensor, "batch *event"], Bool[Tensor, " batch"]]:
        """Step k: the solution y of y − v(y, t_{k+1})/n = x, differentiable; and where it was found.

        Args:
            x: Where it starts.
            k: Which step.
            space: Of the field.
            drift: A guess of y − x; it saves evaluations and changes nothing else.
        """

        def pulled(y: Tensor) -> Tensor:
            return self._shifted(x, self.field(y, self._time(k)), space)

        return self._solved(pulled, (x + drift).detach(), at=None, k=k, space=space)

    def back(self, y: Float[Tensor, "batch *event"], k: int, space: Space) -> Float[Tensor, "batch *event"]:
        """The inverse of step k: y − v(y, t_{k+1})/n."""
        return self._shifted(y, self.field(y, self._time(k)), space, sign=-1)

    def pull(self, y: Tensor, tangent: Tensor, k: int, space: Space) -> Float[Tensor, "batch *event"]:
        """A · tangent, A = ∂x_k/∂x_{k+1} at x_{k+1} = y."""
        return self._shifted(tangent, self.field.jvp(y, tangent, self._time(k))[1], space, sign=-1)

    def push(
        self, y: Tensor, tangent: Tensor, k: int, space: Space
    ) -> tuple[Float[Tensor, "batch *event"], Bool[Tensor, " batch"]]:
        """A⁻¹ · tangent, by the same iteration as the step; and where it was found."""

        def pulled(w: Tensor) -> Tensor:
            return self._shifted(tangent, self.field.jvp(y, w, self._time(k))[1], space)

        return self._solved(pulled, tangent, at=y, k=k, space=space)

    def _solved(
        self, pulled: Callable[[Tensor], Tensor], start: Tensor, *, at: Tensor | None, k: int, space: Space
    ) -> tuple[Tensor, Tensor]:
        """The solution w of w = pulled(w), whose slope is ∂v/∂x/n at a point (None = at w), and where it was found.

        It has derivatives by all else that `pulled` reads: dw = A⁻¹ ∂pulled, by an iteration with Aᵀ when gradients
        arrive. Rows without a solution are left at the start, so that a mask keeps them out of gradients.
        """
        with torch.no_grad():
            solution, found = fixed_point(pulled, start)
        if not torch.is_grad_enabled():
            return solution, found
        once_more = pulled(solution)
        if not once_more.requires_grad:
            return solution, found
        point = solution if at is None else at.detach()

        def implicit(gradient: Tensor) -> Tensor:
            with torch.enable_grad():
                y = point.clone().requires_grad_()
                v = self._shifted(torch.zeros_like(y), self.field(y, self._time(k)), space)
            if not v.requires_grad:
                return gradient

            def transposed(g: Tensor) -> Tensor:
                back = torch.autograd.grad(v, y, g, retain_graph=True, allow_unused=True)[0]
                return gradient if back is None else gradient + back

            return fixed_point(transposed, gradient)[0]

        once_more.register_hook(implicit)
        return once_more, found

    def _time(self, k: int) -> float:
        return (k + 1) / self.n_steps

    def _shifted(self, x: Tensor, v: Tensor, space: Space, *, sign: int = 1) -> Tensor:
        """The sum x ± v/n, v without its centre where the space has none."""
        v = v if moves_centre(space) else v - v.mean(-2, keepdim=True)
        return torch.add(x, v, alpha=sign / self.n_steps)

    def _space(self, state: State) -> Space:
        space = state.spaces[self.name]
        if space.kind in ("sphere", "integer", "mask", "mixed"):
            raise ValueError(
                f"{type(self).__name__}: field {self.name!r} lives on {space.kind!r}, where x + v is not a step; "
                "expected line, interval, circle or box."
            )
        return space

    def extra_repr(self) -> str:
        """Steps and the field of the State."""
        return f"n_steps={self.n_steps}, name={self.name!r}"


def fixed_point(
    function: Callable[[Tensor], Tensor], start: Float[Tensor, "batch *event"]
) -> tuple[Float[Tensor, "batch *event"], Bool[Tensor, " batch"]]:
    """The solution of x = function(x) of every row, by iteration to round-off.

    Args:
        function: Acts on every row by itself.
        start: (batch, *event).

    Returns:
        The solution, the start in rows without one; and where it was found, (batch,).
    """
    tolerance = 64 * torch.finfo(start.dtype).eps
    rows = (-1, *[1] * (start.ndim - 1))
    x, scale = start, None
    found = lost = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    before = torch.zeros(len(start), dtype=start.dtype, device=start.device)
    for _ in range(MAX_ITERATIONS):
        new = function(x)
        off = (new - x).abs_().flatten(1).amax(1)
        scale = tolerance * (1.0 + new.abs().flatten(1).amax(1)) if scale is None else scale
        # settled rows stay as they are, so that no row depends on its neighbours
        settled = found | lost
        x = torch.where(settled.reshape(rows), x, new) if bool(settled.any()) else new
        lost = lost | ~torch.isfinite(off)
        # where it contracts fast, the next change is told by the last two
        left = torch.where(off < 0.1 * before, off * (off / before), off)
        found = found | (~lost & (left <= scale))
        before = off
        if bool((found | lost).all()):
            break
    return torch.where(found.reshape(rows), x, start), found
