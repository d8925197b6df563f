"""Flow matching: regression of a velocity field on straight paths between samples of the base and data."""

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates import match
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions import EulerFlow, PerturbedFlow

__all__ = ["FlowMatching"]


class FlowMatching(Objective):
    """E |v(x_t, t) − (x_1 − x_0)|², x_t = (1 − t) x_0 + t x_1, with x_0 from the base, x_1 from data, t uniform.

    Its minimum carries the base to the density of the data, however x_0 and x_1 are paired; pairs that lie close make
    the paths straighter, so that fewer steps do. Pairing within a batch leaves both marginals as they are. Matching
    permutes and rotates data, so it is right where base and data have that symmetry, and of use where the field has it.
    No energy is evaluated.

    Args:
        generator: With one `EulerFlow` or `PerturbedFlow`, of which the field is trained; what stands behind it is
            inverted on the data.
        pairs: "independent"; "optimal" assigns a batch by squared distances; "matched" permutes and rotates each row of
            the data towards its partner; "optimal matched" does the one and then the other.
        permuted: Groups of interchangeable particles, for "matched"; None = those of one type of the field.
        rotations: "proper", or "all" where the field goes with reflections too; None = as the field does.

    Raises:
        TypeError: If the Generator has not exactly one such flow, or its field does not say what it goes with.

    References:
        Flow matching (Lipman et al., 2023), https://arxiv.org/abs/2210.02747; pairs: Tong et al. (2024),
        https://arxiv.org/abs/2302.00482; Klein, Krämer, Noé (2023), https://arxiv.org/abs/2306.15030
    """

    needs_data = True

    def __init__(
        self,
        generator: Generator,
        *,
        pairs: Literal["independent", "optimal", "matched", "optimal matched"] = "independent",
        permuted: Sequence[Sequence[int]] | None = None,
        rotations: Literal["proper", "all"] | None = None,
    ) -> None:
        super().__init__(generator)
        flows = [k for k, t in enumerate(generator.transitions) if isinstance(t, EulerFlow | PerturbedFlow)]
        if len(flows) != 1:
            raise TypeError(
                f"FlowMatching: expected a Generator with one EulerFlow or PerturbedFlow, got {len(flows)} of them."
            )
        self._place = flows[0]
        field = generator.transitions[self._place].field
        if "matched" in pairs and (permuted is None or rotations is None) and field.types is None:
            raise TypeError(
                f"FlowMatching: {type(field).__name__} does not say which particles are alike; give permuted and "
                "rotations, or pairs='optimal'."
            )
        self.pairs = pairs
        self.permuted = _groups(field.types or ()) if permuted is None else permuted
        self.rotations = rotations or ("all" if field.reflects else "proper")

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error per coordinate."""
        flow = self.generator.transitions[self._place]
        with torch.no_grad():
            x0, x1 = self._ends(step, flow.name)
            t = torch.rand(len(x0), dtype=torch.float64, device=step.rng.device, generator=step.rng).to(x0)
        u = x1 - x0
        error = (flow.field(x0 + t.reshape(-1, *[1] * (u.ndim - 1)) * u, t) - u).square().flatten(1).mean(1)
        loss = error.mean()
        return loss, {"flow_matching": loss.detach(), "path_length": u.flatten(1).norm(dim=1).mean()}

    def _ends(self, step: Step, name: str) -> tuple[Tensor, Tensor]:
        """Pairs of samples of the base and data, both where the flow begins and ends."""
        run = Run(step.rng, step.context, ledger=step.ledger)
        state = step.data
        for transition in reversed(self.generator.transitions[self._place + 1 :]):
            state, _ = transition.reverse(state, run)
        start: State = self.generator.base.sample(len(state), step.rng, step.context)
        for transition in self.generator.transitions[: self._place]:
            start, _ = transition(start, run)
        x0, x1 = start[name], state[name]
        if x0.ndim == 3:
            # velocities of particles have no mean, and no part in where their centre lies
            x0, x1 = (x - x.mean(1, keepdim=True) for x in (x0, x1))
        if "matched" in self.pairs and not self.permuted:
            # rotated alike, all rows can be compared with one another
            one = x1[:1].expand_as(x1)
            x0, x1 = (match(x, one, rotations=self.rotations) for x in (x0, x1))
        if "optimal" in self.pairs:
            cost = torch.cdist(x0.flatten(1), x1.flatten(1)).square().cpu().numpy()
            x1 = x1[torch.from_numpy(linear_sum_assignment(cost)[1]).to(x1.device)]
        if "matched" in self.pairs:
            x1 = match(x1, x0, permuted=self.permuted, rotations=self.rotations)
        return x0, x1


def _groups(types: Sequence[int]) -> list[list[int]]:
    """Particles of every type that has more than one."""
    groups = [[k for k, one in enumerate(types) if one == kind] for kind in sorted(set(types))]
    return [group for group in groups if len(group) > 1]
