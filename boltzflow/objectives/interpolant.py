"""Matching of stochastic interpolants: the mean velocity and the mean noise of paths with noise on the way."""

from collections.abc import Sequence
from typing import Literal

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.flow_matching import FlowMatching, Pairs
from boltzflow.objectives.objective import Step
from boltzflow.run import Run
from boltzflow.transitions import Interpolant, InterpolantSDE

__all__ = ["InterpolantMatching"]


class InterpolantMatching(FlowMatching):
    """E |v(x_t, t) − ẋ_t|² + E |η(x_t, t) − z|², x_t = α_t x_0 + β_t x_1 + γ_t z, t uniform.

    v is the field of the Generator's flow, η the denoiser of its `InterpolantSDE`, if it has one. With v alone the flow
    is deterministic; with η, or where the base is normal and γ = 0, the stochastic steps have the same marginals.

    Args:
        generator: With one `InterpolantSDE`, or one `EulerFlow` or `PerturbedFlow`.
        interpolant: α, β and γ; None = those of the InterpolantSDE.
        pairs: As in `FlowMatching`.
        permuted: As in `FlowMatching`.
        rotations: As in `FlowMatching`.

    Raises:
        ValueError: If neither the arguments nor the Generator have an interpolant, or both another one.

    References:
        Stochastic Interpolants (Albergo, Boffi, Vanden-Eijnden, 2023), section 2,
        https://arxiv.org/abs/2303.08797
    """

    def __init__(
        self,
        generator: Generator,
        *,
        interpolant: Interpolant | None = None,
        pairs: Pairs = "independent",
        permuted: Sequence[Sequence[int]] | None = None,
        rotations: Literal["proper", "all"] | None = None,
    ) -> None:
        super().__init__(generator, pairs=pairs, permuted=permuted, rotations=rotations)
        flow = generator.transitions[self._place]
        own = flow.interpolant if isinstance(flow, InterpolantSDE) else interpolant
        if own is None or (interpolant is not None and own != interpolant):
            raise ValueError(
                f"InterpolantMatching: expected an interpolant, that of the InterpolantSDE if there is one, got "
                f"{interpolant} for {type(flow).__name__}{'' if own is None else f' of {own}'}."
            )
        self.interpolant = own

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared errors per coordinate, of the velocity and of the noise."""
        flow = self.generator.transitions[self._place]
        with torch.no_grad():
            x0, x1 = self._ends(step, flow.name)
            t = torch.rand(len(x0), dtype=torch.float64, device=step.rng.device, generator=step.rng).to(x0)
            z = Run(step.rng).normal(x0)
            z = z - z.mean(1, keepdim=True) if z.ndim == 3 else z
            ends = torch.stack([x0, x1, z])
            rows = (3, -1, *[1] * (x0.ndim - 1))
            x = (torch.stack(self.interpolant.at(t)).reshape(rows) * ends).sum(0)
            u = (torch.stack(self.interpolant.slopes(t)).reshape(rows) * ends).sum(0)
        velocity = (flow.field(x, t) - u).square().mean()
        logged = {"flow_matching": velocity.detach(), "path_length": (x1 - x0).flatten(1).norm(dim=1).mean()}
        denoiser = getattr(flow, "denoiser", None)
        if denoiser is None:
            return velocity, logged
        noise = (denoiser(x, t) - z).square().mean()
        return velocity + noise, {**logged, "denoising": noise.detach()}
