"""MALA: Langevin proposal with a Metropolis-Hastings test."""

from typing import ClassVar

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions.langevin import langevin_log_ratio, langevin_proposal
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.step_size import Stepped

__all__ = ["MALA"]


class MALA(MetropolisKernel, Stepped):
    """Metropolis-adjusted Langevin: y = x − ε ∇u(x) + √(2ε) n, accepted with the ratio of both proposal densities.

    A drifted proposal accepted with exp(−Δu) alone would leave another density invariant. One force evaluation per
    step.

    Args:
        step_size: ε, a number or one per row.
        n_steps: Trials per call.
        learnable: Whether the step size is a parameter; its gradient takes second derivatives of the energy.
        level: λ on the annealing path.

    References:
        Roberts and Tweedie, Bernoulli 2, 341 (1996).
    """

    target_acceptance: ClassVar[float] = 0.574
    needs_force: ClassVar[bool] = True

    def __init__(
        self, step_size: float | Tensor, *, n_steps: int = 1, learnable: bool = False, level: float = 1.0
    ) -> None:
        super().__init__(n_steps=n_steps, level=level)
        self.register_step_size(step_size, learnable=learnable)

    def propose(self, state: State, run: Run) -> tuple[State, Float64[Tensor, " batch"]]:
        """Langevin proposal and its Metropolis-Hastings odds."""
        before, _ = run.energy(state)
        step_size = self.current_step_size()
        moved, noise = langevin_proposal(state, step_size, run)
        after, _, proposal = run.energy_and_force(moved)
        return proposal, before - after + langevin_log_ratio(state, proposal, noise, step_size, run)
