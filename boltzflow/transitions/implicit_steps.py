"""ImplicitSteps: backward Euler steps along a vector field, whose inverses are explicit."""

from collections.abc import Callable

import torch

from boltzflow._typing import Bool, Float, Tensor
from boltzflow.networks.vector_field import VectorField
from boltzflow.state import Space, State
from boltzflow.transitions.metropolis import moves_centre
from boltzflow.transitions.step_size import at_least_one
from boltzflow.transitions.transition import Transition

__all__ = ["ImplicitSteps", "fixed_point"]

MAX_ITERATIONS = 100


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
        return (type(self).__name__, type(self.field).__name__)

    def step(
        self, x: Float[Tensor, "batch *event"], k: int, space: Space, *, drift: Tensor | float = 0.0
    ) -> tuple[Float[Tensor, "batch *event"], Bool[Tensor, " batch"]]:
        """Step k: the solution y of y − v(y, t_{k+1})/n = x, differentiable; and where it was found.

        Args:
            x: Where it starts.
            k: Which step.
            space: Of the field.
            drift: A guess of y − x, such as that of the step before; it saves an evaluation and changes nothing else.
        """

        def pulled(y: Tensor) -> Tensor:
            return x + self._scaled(self.field(y, self._time(k)), space)

        return self._solved(pulled, (x + drift).detach(), at=None, k=k, space=space)

    def back(self, y: Float[Tensor, "batch *event"], k: int, space: Space) -> Float[Tensor, "batch *event"]:
        """The inverse of step k: y − v(y, t_{k+1})/n."""
        return y - self._scaled(self.field(y, self._time(k)), space)

    def pull(self, y: Tensor, tangent: Tensor, k: int, space: Space) -> Float[Tensor, "batch *event"]:
        """A · tangent, A = ∂x_k/∂x_{k+1} at x_{k+1} = y."""
        return tangent - self._scaled(self.field.jvp(y, tangent, self._time(k))[1], space)

    def push(
        self, y: Tensor, tangent: Tensor, k: int, space: Space
    ) -> tuple[Float[Tensor, "batch *event"], Bool[Tensor, " batch"]]:
        """A⁻¹ · tangent, by the same iteration as the step; and where it was found."""

        def pulled(w: Tensor) -> Tensor:
            return tangent + self._scaled(self.field.jvp(y, w, self._time(k))[1], space)

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
                v = self._scaled(self.field(y, self._time(k)), space)
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

    def _scaled(self, v: Tensor, space: Space) -> Tensor:
        v = v / self.n_steps
        return v if moves_centre(space) else v - v.mean(-2, keepdim=True)

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
    x = start
    found = lost = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    before = torch.zeros(len(start), dtype=start.dtype, device=start.device)
    for _ in range(MAX_ITERATIONS):
        new = function(x)
        off, size = (new - x).abs().flatten(1).amax(1), new.abs().flatten(1).amax(1)
        # settled rows stay as they are, so that no row depends on its neighbours
        x = torch.where((found | lost).reshape(rows), x, new)
        lost = lost | ~torch.isfinite(off)
        # where it contracts fast, the next change is told by the last two
        left = torch.where(off < 0.1 * before, off * (off / before), off)
        found = found | (~lost & (left <= tolerance * (1.0 + size)))
        before = off
        if bool((found | lost).all()):
            break
    return torch.where(found.reshape(rows), x, start), found
