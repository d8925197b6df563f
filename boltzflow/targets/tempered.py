"""A Target at another temperature, given relative to its own."""

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["Tempered"]


class Tempered(Target):
    """β u, with u the energy of another Target and β = `context["inverse_temperature"]`, relative to it; 1 without.

    Evaluations are counted under the name of the Target, of which it costs one each.

    Args:
        target: Whose energy is scaled; kept out of the module tree.

    Raises:
        ValueError: On evaluation, if β is not positive: 0·inf has no meaning.

    Example:
        >>> import torch
        >>> from boltzflow.targets import Gaussian
        >>> hot = Tempered(Gaussian(1))
        >>> x = hot.state(torch.tensor([[2.0]]))
        >>> (hot.reduced_energy(x, {"inverse_temperature": 0.5}) / hot.reduced_energy(x)).item()
        0.5
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target.fields, name=target.name)
        self.measure = target.measure
        self._target = (target,)

    def _beta(self, context: Context | None) -> float:
        beta = 1.0 if context is None else float(context.get("inverse_temperature", 1.0))
        if not beta > 0.0:
            raise ValueError(
                f"Tempered: expected a positive inverse_temperature, relative to the Target's, got {beta}."
            )
        return beta

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """β u, shape (batch,), float64."""
        return self._beta(context) * self._target[0].reduced_energy(state, context).double()

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
        """β u and its negative gradient by field from one evaluation, detached."""
        beta = self._beta(context)
        u, force = self._target[0].energy_and_force(state, context)
        return beta * u.double(), {name: beta * value for name, value in force.items()}
