"""Flow matching of rotations: regression of angular velocities on geodesics between samples of the base and data."""

from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates.rotations import rotation_exp, rotation_log
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step
from boltzflow.transitions import RotationFlow

__all__ = ["RotationMatching"]


class RotationMatching(Objective):
    """E |ω(R_t, t) − Ω|², R_t = R_0 exp(t [Ω]), Ω = log(R_0ᵀ R_1), with R_0 from the base, R_1 from data, t uniform.

    Ω is the angular velocity of the geodesic in the frame of the body, constant along it.

    Args:
        generator: Of one `RotationFlow`, of which the field is trained.
        pairs: "independent"; "optimal" assigns a batch by the sum of squared angles.

    Raises:
        TypeError: If the Generator is not one RotationFlow.

    References:
        Flow Matching on General Geometries (Chen, Lipman, 2024), https://arxiv.org/abs/2302.03660; pairs:
        SE(3)-Stochastic Flow Matching (Bose et al., 2024), https://arxiv.org/abs/2310.02391
    """

    needs_data = True

    def __init__(self, generator: Generator, *, pairs: Literal["independent", "optimal"] = "independent") -> None:
        super().__init__(generator)
        kinds = [type(t).__name__ for t in generator.transitions]
        if kinds != ["RotationFlow"] or not isinstance(generator.transitions[0], RotationFlow):
            raise TypeError(f"RotationMatching: expected a Generator of one RotationFlow, got {kinds}.")
        self.pairs = pairs

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error per degree of freedom."""
        flow = self.generator.transitions[0]
        with torch.no_grad():
            end = step.data[flow.name]
            start = self.generator.base.sample(len(end), step.rng, step.context)[flow.name]
            if self.pairs == "optimal":
                angles = rotation_log(start.mT[:, None] @ end[None]).square().sum((2, 3))
                end = end[torch.from_numpy(linear_sum_assignment(angles.cpu().numpy())[1]).to(end.device)]
            omega = rotation_log(start.mT @ end)
            t = torch.rand(len(end), dtype=torch.float64, device=step.rng.device, generator=step.rng).to(end)
            here = start @ rotation_exp(t[:, None, None] * omega)
        loss = (flow.field(here, t) - omega).square().mean()
        return loss, {"flow_matching": loss.detach(), "path_length": omega.flatten(1).norm(dim=1).mean()}
