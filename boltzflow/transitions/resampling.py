"""Systematic resampling of a population when its effective sample size has fallen."""

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.transitions.transition import BatchStep

__all__ = ["SystematicResampling"]


class SystematicResampling(BatchStep):
    """Resample when the Kish effective sample size is below `threshold` times the population.

    One uniform number places n equidistant pointers on the cumulated weights, so that every row gets the floor or the
    ceiling of its expected number of copies.

    Args:
        threshold: In [0, 1]; 1 resamples whenever the weights are not all equal, 0 never.
        level: λ of the energy by which the population is weighted.

    References:
        Kitagawa, J. Comput. Graph. Stat. 5, 1 (1996); Del Moral, Doucet and Jasra, J. R. Stat. Soc. B 68, 411 (2006).
    """

    def __init__(self, *, threshold: float = 0.5, level: float = 1.0) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ValueError(f"SystematicResampling threshold: expected a value in [0, 1], got {threshold}.")
        self.threshold = threshold
        self.level = level

    def choose(self, log_weights: Float64[Tensor, " batch"], rng: torch.Generator) -> Tensor | None:
        """Ancestor of every row, shape (batch,), int64, in rising order; None if the weights are even enough.

        Args:
            log_weights: Unnormalised; −inf rows are never chosen.
            rng: Random stream.

        Raises:
            NonFiniteEnergyError: If a log-weight is NaN or +inf, or all are −inf.
        """
        n = log_weights.shape[0]
        p = torch.softmax(log_weights, 0)  # NaN throughout if a weight is NaN or +inf, or all are zero
        ess = float(1.0 / p.square().sum())
        if not ess > 0.0:
            raise NonFiniteEnergyError(
                f"SystematicResampling at level {self.level}: expected log-weights below +inf, not all −inf; got "
                f"{int(log_weights.isnan().sum())} NaN, {int(log_weights.isposinf().sum())} +inf and "
                f"{int(log_weights.isneginf().sum())} −inf of {n}. Check the energies of the population."
            )
        # rounding may put the size of equal weights slightly below n
        if ess >= self.threshold * n * (1 - 1e-12):
            return None
        offset = torch.rand((), dtype=torch.float64, device=rng.device, generator=rng).to(log_weights.device)
        pointers = (torch.arange(n, dtype=torch.float64, device=log_weights.device) + offset) / n
        cumulated = torch.cumsum(p, 0)
        return torch.searchsorted(cumulated / cumulated[-1], pointers, right=True).clamp_(max=n - 1)
