"""Pull-back of a Target through the last steps of a Generator: its density in the coordinates before them."""

from collections.abc import Callable, Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.paths.path import GeometricPath, MixtureLevel, Path
from boltzflow.run import Context, Run
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.transition import Bijection, Drop

__all__ = ["PullbackPath", "PullbackTarget"]


class PullbackTarget(Target):
    """The density of q whose image x = T(q) has the density exp(−u(x)): u(T(q)) − log|det ∂x/∂q|, of the same log Z.

    Args:
        target: Density of x; kept out of the module tree. Evaluations count under its name.
        through: T, applied in this order; kept out of the module tree. Before steps that drop auxiliary variables it is
            the joint density with these.
        base: A density of q, whose fields these are.
    """

    def __init__(self, target: Target, through: Sequence[Bijection | Drop], base: Target) -> None:
        super().__init__(base.fields, name=target.name, log_z=target.log_z)
        self.measure = base.measure
        self._target, self._through = (target,), tuple(through)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Energy of the image less the log-determinant, (batch,); +inf where there is no image."""
        # none of them draws anything
        run = Run(torch.Generator(), context)
        image, log_det = State({name: state[name] for name in self.fields}, self.fields), 0.0
        for transition in self._through:
            image, ratio = transition(image, run)
            log_det = log_det + ratio
        return self._target[0].reduced_energy(image, context).double() - log_det


class PullbackPath(Path):
    """A path in the coordinates before the last steps of a Generator, between its base and the pulled-back Target.

    Args:
        base: Density of the coordinates at λ = 0.
        target: Density of their image, at λ = 1.
        through: The last steps of the Generator, Bijections and those that drop auxiliary variables, in its order; what
            else is stochastic comes before them.
        path: Makes the path between base and pulled-back Target.

    Example:
        >>> from functools import partial
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.targets import Gaussian
        >>> from boltzflow.transitions import MALA, Affine
        >>> scaled = Affine(torch.zeros(2), torch.full((2,), 3.0), field="x")
        >>> steps = [MALA(0.1, level=0.5), scaled]
        >>> generator = Generator(Gaussian(2), steps, path=partial(PullbackPath, through=[scaled]))
    """

    def __init__(
        self,
        base: Target,
        target: Target,
        *,
        through: Sequence[Bijection | Drop],
        path: Callable[[Target, Target], Path] = GeometricPath,
    ) -> None:
        self._path = path(base, PullbackTarget(target, through, base))

    def at(self, level: float | Tensor) -> MixtureLevel:
        """The energy at λ in [0, 1]."""
        return self._path.at(level)
