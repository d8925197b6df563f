"""Weighted sums of objectives."""

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Context, Ledger
from boltzflow.state import State

__all__ = ["Mixture"]


class Mixture(Objective):
    """Σ weight · objective over terms that share one Generator, e.g. likelihood and reverse KL.

    Args:
        terms: (weight, objective) pairs; weights are positive.

    Raises:
        ValueError: If there is no term, a weight is not positive, or the terms train different Generators.

    References:
        Boltzmann generators (Noé et al., 2019), eq. 6.
    """

    def __init__(self, terms: list[tuple[float, Objective]]) -> None:
        if not terms:
            raise ValueError(
                "Mixture: expected at least one (weight, objective), got none; give one term a weight above 0."
            )
        if any(weight <= 0 for weight, _ in terms):
            raise ValueError(
                f"Mixture: expected positive weights, got {[weight for weight, _ in terms]}; leave a term out instead."
            )
        if any(term.generator is not terms[0][1].generator for _, term in terms):
            raise ValueError("Mixture: expected terms over one and the same Generator.")
        super().__init__(terms[0][1].generator)
        self.weights = [float(weight) for weight, _ in terms]
        self.terms = torch.nn.ModuleList(term for _, term in terms)
        self.needs_data = any(term.needs_data for term in self.terms)
        self.needs_samples = any(term.needs_samples for term in self.terms)
        self.is_static = all(term.is_static for term in self.terms)

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum, and what every term logs."""
        total, logged = 0.0, {}
        for weight, term in zip(self.weights, self.terms, strict=True):
            loss, numbers = term(step)
            total = total + weight * loss
            logged.update(numbers)
        return total, logged

    def prepare(self, data: State, context: Context | None, ledger: Ledger) -> State:
        """What every term prepares."""
        for term in self.terms:
            data = term.prepare(data, context, ledger)
        return data
