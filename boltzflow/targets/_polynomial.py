"""One-dimensional densities exp(−p(x)) of a polynomial p: exact normalisation and exact samples."""

import numpy as np
import torch
from scipy.integrate import simpson

from boltzflow._typing import Float64, Tensor
from boltzflow.targets._noise import uniform

__all__ = ["PolynomialDensity", "evaluate"]


class PolynomialDensity:
    """The density exp(−p(x)) / Z on the line, for an even-degree polynomial with a positive leading coefficient.

    Samples are drawn by rejection from a step function that bounds the density from above in every cell: exact except
    for the mass beyond the last cell, below 1e-25.

    Args:
        coefficients: Of ascending powers.

    Attributes:
        log_z: log ∫ exp(−p(x)) dx.
        minima: Positions of the local minima of p, ascending.
    """

    def __init__(self, coefficients: tuple[float, ...]) -> None:
        p = np.polynomial.Polynomial(coefficients)
        if len(coefficients) % 2 == 0 or not coefficients[-1] > 0:
            raise ValueError(
                f"Polynomial energy: expected even degree and a positive leading coefficient, got {coefficients}."
            )
        roots = p.deriv().roots()
        critical = np.sort(roots[np.abs(roots.imag) < 1e-6].real)
        self.minima = tuple(float(x) for x in critical if p.deriv(2)(x) > 0)
        lowest = p(critical).min()
        ends = (p - lowest - 60.0).roots()
        ends = ends[np.abs(ends.imag) < 1e-6].real
        edges = np.linspace(ends.min(), ends.max(), 1025)
        # the trapezoidal rule converges exponentially for a smooth density that vanishes at both ends
        x = np.linspace(ends.min(), ends.max(), 20001)
        self.log_z = float(np.log(np.exp(lowest - p(x)).sum() * (x[1] - x[0])) - lowest)
        floor = np.minimum(p(edges[:-1]), p(edges[1:]))
        for m in self.minima:
            cell = np.clip(np.searchsorted(edges, m) - 1, 0, len(floor) - 1)
            floor[cell] = min(floor[cell], p(m))
        mass = np.exp(lowest - floor).cumsum()
        self._p = [float(c) for c in coefficients]
        self._table = tuple(torch.from_numpy(t) for t in (edges, floor, mass / mass[-1]))

    def sample(self, n: int, rng: torch.Generator) -> Float64[Tensor, " n"]:
        """Draw n exact samples on the device of the stream."""
        edges, floor, mass = (t.to(rng.device) for t in self._table)
        x = torch.empty(n, dtype=torch.float64, device=rng.device)
        open_ = torch.arange(n, device=rng.device)
        while len(open_):
            u = uniform((3, len(open_)), rng, x)
            cell = torch.searchsorted(mass, u[0], right=True).clamp_max(len(floor) - 1)
            proposal = edges[cell] + (edges[1] - edges[0]) * u[1]
            accept = u[2] < (floor[cell] - evaluate(self._p, proposal)).exp()
            x[open_[accept]] = proposal[accept]
            open_ = open_[~accept]
        return x

    def below(self, threshold: float) -> float:
        """Probability of x < threshold, by quadrature."""
        edges = self._table[0].numpy()
        p = np.polynomial.Polynomial(self._p)
        x = np.linspace(edges[0], np.clip(threshold, edges[0], edges[-1]), 20001)
        return float(simpson(np.exp(-p(x) - self.log_z), x=x))


def evaluate(coefficients: list[float] | Tensor, x: Tensor) -> Tensor:
    """The polynomial at x, by Horner's rule; coefficients of ascending powers."""
    value = torch.zeros_like(x)
    for i in range(len(coefficients) - 1, -1, -1):
        value = value * x + coefficients[i]
    return value
