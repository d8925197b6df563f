"""Independent quartic wells, alone or many at once, with harmonic directions beside them."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets._polynomial import PolynomialDensity, evaluate
from boltzflow.targets.target import Target

__all__ = ["DoubleWell", "ManyWell", "Wells", "mw52", "mw54"]


class Wells(Target):
    """u = Σ p(x_i) over the well coordinates + ½ Σ x_j² over the others; field "x"; does not depend on the context.

    log Z comes from quadrature in one dimension; samples are exact.

    Args:
        dimension: Number of coordinates.
        coefficients: Of ascending powers of p; even degree, the last one positive.
        wells: Indices of the well coordinates; all others are harmonic with unit stiffness.
        name: Shown in ledgers and provenance.

    Attributes:
        well: The density exp(−p) of one well coordinate: `log_z`, `minima`, `below(threshold)`.
    """

    def __init__(
        self, dimension: int, *, coefficients: Sequence[float], wells: Sequence[int], name: str | None = None
    ) -> None:
        coefficients = tuple(float(c) for c in coefficients)
        well = PolynomialDensity(coefficients)
        harmonic = [i for i in range(dimension) if i not in set(wells)]
        log_z = len(wells) * well.log_z + 0.5 * len(harmonic) * math.log(2 * math.pi)
        super().__init__({"x": Space("line", (dimension,))}, name=name, log_z=log_z)
        self.well = well
        self.register_buffer("coefficients", torch.tensor(coefficients))
        self.register_buffer("_wells", torch.tensor(list(wells)), persistent=False)
        self.register_buffer("_harmonic", torch.tensor(harmonic, dtype=torch.int64), persistent=False)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Sum of the well and the harmonic energies, shape (batch,)."""
        x = state["x"]
        harmonic = 0.5 * x[:, self._harmonic].square().sum(1, dtype=torch.float64)
        return harmonic + evaluate(self.coefficients, x[:, self._wells]).sum(1, dtype=torch.float64)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        x = normal((n, self.dimension), rng, self.coefficients)
        wells = self.well.sample(n * len(self._wells), rng).reshape(n, len(self._wells))
        x[:, self._wells] = wells.to(x)
        return self.state(x)


class DoubleWell(Wells):
    """u(x, y) = a x + b x² + c x⁴ + ½ y², two wells in x.

    The defaults have log Z = 10.293480, P(x < 0) = 0.155693 and minima at x = −1.710828 and 1.752520.

    Args:
        a: Tilt.
        b: Quadratic coefficient; negative for two wells.
        c: Quartic coefficient; positive.

    References:
        Noé, Olsson, Köhler, Wu, Science 365, eaaw1147 (2019), supplement; Wu, Köhler, Noé, NeurIPS 2020, section 5.
    """

    def __init__(self, *, a: float = -0.5, b: float = -6.0, c: float = 1.0) -> None:
        super().__init__(2, coefficients=(0.0, a, b, 0.0, c), wells=(0,))


class ManyWell(Wells):
    """Pairs (x₁, x₂) of u = −½ x₁ − 6 x₁² + x₁⁴ + ½ x₂², interleaved: 2^(d/2) modes.

    log Z is 10.2934797 per pair: 164.695675 at d = 32. The right well of each pair holds 84.43 % of the mass.

    Args:
        dimension: d, even.

    References:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato, ICLR 2023 (FAB), appendix.
    """

    def __init__(self, dimension: int = 32) -> None:
        if dimension < 2 or dimension % 2:
            raise ValueError(f"ManyWell dimension: expected an even number of at least 2, got {dimension}.")
        wells = range(0, dimension, 2)
        super().__init__(dimension, coefficients=(0.0, -0.5, -6.0, 0.0, 1.0), wells=wells, name=f"ManyWell{dimension}")


def mw54() -> Wells:
    """The five-dimensional many-well Σ (x_i² − 4)² of the diffusion-sampler literature; log Z = −0.541056.

    References:
        Berner, Richter, Ullrich, TMLR 2024 (DIS).
    """
    return Wells(5, coefficients=(16.0, 0.0, -8.0, 0.0, 1.0), wells=range(5), name="MW54")


def mw52() -> Wells:
    """Σ (x_i² − 2)² over five coordinates and ½ x_j² over 45 more, d = 50; log Z = 42.8172.

    References:
        Berner, Richter, Ullrich, TMLR 2024 (DIS).
    """
    return Wells(50, coefficients=(4.0, 0.0, -4.0, 0.0, 1.0), wells=range(5), name="MW52")
