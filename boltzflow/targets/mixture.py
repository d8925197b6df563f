"""Mixtures of Gaussians, among them the 9, 25 and 40 component benchmarks."""

import itertools
import math

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import normal
from boltzflow.targets.target import Target

__all__ = ["GaussianMixture", "gmm9", "gmm25", "gmm40"]


class GaussianMixture(Target):
    """Mixture of isotropic Gaussians on field "x", normalised (log Z = 0); does not depend on the context.

    Args:
        means: Shape (k, d).
        scale: Standard deviations, a number or shape (k,).
        weights: Positive, shape (k,); normalised here. None = equal.
        name: Shown in ledgers and provenance.

    Raises:
        ValueError: If a scale or a weight is not positive, or shapes disagree.
    """

    def __init__(
        self,
        means: Float[Tensor, "k d"],
        *,
        scale: float | Float[Tensor, " k"],
        weights: Float[Tensor, " k"] | None = None,
        name: str | None = None,
    ) -> None:
        k, d = means.shape
        scale = torch.as_tensor(scale, dtype=means.dtype).expand(k).clone()
        weights = torch.ones(k, dtype=means.dtype) if weights is None else weights.to(means.dtype)
        if not (scale > 0).all() or not (weights > 0).all():
            raise ValueError("GaussianMixture: expected positive scales and weights.")
        super().__init__({"x": Space("line", (d,))}, name=name, log_z=0.0)
        self.register_buffer("means", means.detach().clone())
        self.register_buffer("scale", scale)
        self.register_buffer("weights", weights / weights.sum())

    def _component_log_probs(self, x: Float[Tensor, "batch d"]) -> Float64[Tensor, "batch k"]:
        x, means, scale = x.double(), self.means.double(), self.scale.double()
        log_weights = self.weights.double().log()
        # differences, not the expanded square: far from the origin that would cancel
        squares = (x[:, None] - means).square().sum(2) / scale.square()
        constant = self.dimension * (scale.log() + 0.5 * math.log(2 * math.pi))
        return log_weights - torch.logsumexp(log_weights, 0) - constant - 0.5 * squares

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """−log of the normalised density, shape (batch,)."""
        return -torch.logsumexp(self._component_log_probs(state["x"]), 1)

    def responsibilities(self, state: State) -> Float64[Tensor, "batch k"]:
        """Probability that a row came from each component; the mean over the mixture is its weight, exactly."""
        return torch.softmax(self._component_log_probs(state["x"]), 1)

    def component(self, state: State) -> Int[Tensor, " batch"]:
        """Most probable component of every row: which mode a sample belongs to."""
        return self._component_log_probs(state["x"]).argmax(1)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n exact samples."""
        k = torch.multinomial(self.weights.to(rng.device), n, replacement=True, generator=rng).to(self.means.device)
        return self.state(self.means[k] + self.scale[k, None] * normal((n, self.dimension), rng, self.means))


def _grid(points: tuple[float, ...]) -> Tensor:
    return torch.tensor(list(itertools.product(points, points)))


def gmm9() -> GaussianMixture:
    """Nine components on {−5, 0, 5}², variance 0.3 each.

    References:
        Zhang and Chen, ICLR 2022 (PIS), "mixture of Gaussians".
    """
    return GaussianMixture(_grid((-5.0, 0.0, 5.0)), scale=math.sqrt(0.3), name="GMM9")


def gmm25() -> GaussianMixture:
    """25 components on {−10, −5, 0, 5, 10}², variance 0.3 each.

    References:
        Sendera et al., NeurIPS 2024, "25GMM".
    """
    return GaussianMixture(_grid((-10.0, -5.0, 0.0, 5.0, 10.0)), scale=math.sqrt(0.3), name="GMM25")


def gmm40() -> GaussianMixture:
    """40 components with means from U[−40, 40]², standard deviation softplus(1) = 1.3133: the version of FAB and DEM.

    The means are those of torch's CPU stream of seed 0 in float32. Two incompatible versions exist elsewhere: one with
    means from a JAX stream and unit standard deviation, and its 50-dimensional extension.

    References:
        Midgley, Stimper, Simm, Schölkopf, Hernández-Lobato, ICLR 2023 (FAB).
    """
    uniform = torch.rand((40, 2), dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    means = ((uniform - 0.5) * 2 * 40).to(torch.get_default_dtype())
    return GaussianMixture(means, scale=math.log1p(math.e), name="GMM40")
