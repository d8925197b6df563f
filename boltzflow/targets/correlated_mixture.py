"""Mixtures of correlated Gaussians, among them the two wells in 10 and 1000 dimensions of flow perturbation."""

import math

import torch

from boltzflow._typing import Float, Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.target import Base

__all__ = ["CorrelatedMixture", "perturbation_wells"]


class CorrelatedMixture(Base):
    """Mixture of Gaussians of any covariances on field "x", normalised (log Z = 0); does not depend on the context.

    Args:
        means: Shape (k, d).
        rotations: Orthogonal matrices (k, d, d), whose columns are the principal axes.
        variances: Along those axes, positive, (k, d).
        weights: Positive, (k,); normalised here. None = equal.
        name: Shown in ledgers and provenance.

    Raises:
        ValueError: If a variance or a weight is not positive, or a rotation is not orthogonal.
    """

    def __init__(
        self,
        means: Float[Tensor, "k d"],
        rotations: Float[Tensor, "k d d"],
        variances: Float[Tensor, "k d"],
        *,
        weights: Float[Tensor, " k"] | None = None,
        name: str | None = None,
    ) -> None:
        k, d = means.shape
        weights = torch.ones(k, dtype=means.dtype) if weights is None else weights.to(means.dtype)
        if not (variances > 0).all() or not (weights > 0).all():
            raise ValueError("CorrelatedMixture: expected positive variances and weights.")
        if not torch.allclose(rotations.mT @ rotations, torch.eye(d, dtype=rotations.dtype), atol=1e-5):
            raise ValueError("CorrelatedMixture rotations: expected orthogonal matrices.")
        super().__init__({"x": Space("line", (d,))}, name=name, log_z=0.0)
        self.register_buffer("means", means.detach().clone())
        self.register_buffer("rotations", rotations.detach().clone())
        self.register_buffer("variances", variances.detach().clone())
        self.register_buffer("weights", weights / weights.sum())

    def _component_log_probs(self, x: Float[Tensor, "batch d"]) -> Float64[Tensor, "batch k"]:
        along = torch.einsum("bkd,kde->bke", x.double()[:, None] - self.means.double(), self.rotations.double())
        variances, weights = self.variances.double(), self.weights.double()
        constant = (weights / weights.sum()).log() - 0.5 * (variances.log() + math.log(2 * math.pi)).sum(1)
        return constant - 0.5 * (along.square() / variances).sum(2)

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, shape (batch,)."""
        return -torch.logsumexp(self._component_log_probs(state["x"]), 1)

    def responsibilities(self, state: State) -> Float64[Tensor, "batch k"]:
        """Probability that a row came from each component; the mean over the mixture is its weight, exactly."""
        return torch.softmax(self._component_log_probs(state["x"]), 1)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        k = torch.multinomial(self.weights.to(rng.device), n, replacement=True, generator=rng).to(self.means.device)
        along = normal((n, self.dimension), rng, self.means) * self.variances.sqrt()[k]
        x = torch.empty_like(along)
        for i in range(len(self.weights)):
            x[k == i] = self.means[i] + along[k == i] @ self.rotations[i].t()
        return self.state(x)

    def separated_mean_energy(self) -> float:
        """⟨u⟩ = Σ w (½ log det(2πe C) − log w), exact up to the overlap of the components."""
        variances, weights = self.variances.double(), self.weights.double()
        entropies = 0.5 * (variances.log() + math.log(2 * math.pi) + 1.0).sum(1)
        return float((weights * (entropies - weights.log())).sum())


def perturbation_wells(d: int = 10) -> CorrelatedMixture:
    """Two wells at x₁ = −2 (weight 1/4, along the axes) and x₁ = 2 (weight 3/4, rotated), of the seed 42.

    Variances are 0.01 + |N(0, 0.25²)|. With d = 10 the mean energy is 3.7482 kT.

    Args:
        d: Dimensions; published with 10 and 1000.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), https://arxiv.org/abs/2407.10666
    """
    rng = torch.Generator().manual_seed(42)
    rotated = 0.01 + (0.25 * torch.randn(d, dtype=torch.float32, generator=rng)).abs()
    rotation = torch.linalg.qr(torch.randn(d, d, dtype=torch.float32, generator=rng).double()).Q
    straight = 0.01 + (0.25 * torch.randn(d, dtype=torch.float32, generator=rng)).abs()
    dtype = torch.get_default_dtype()
    means = torch.zeros(2, d, dtype=dtype)
    means[:, 0] = torch.tensor([-2.0, 2.0])
    rotations = torch.stack([torch.eye(d, dtype=torch.float64), rotation]).to(dtype)
    variances = torch.stack([straight, rotated]).to(dtype)
    weights = torch.tensor([0.25, 0.75], dtype=dtype)
    return CorrelatedMixture(means, rotations, variances, weights=weights, name=f"perturbation wells {d}d")
