"""Few-step flow maps: the mean velocities over long steps, distilled from the flow as it was."""

import copy
from collections.abc import Mapping
from typing import Any

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.networks import VectorField
from boltzflow.objectives.objective import Objective, Step
from boltzflow.run import Run
from boltzflow.transitions import EulerFlow
from boltzflow.transitions.step_size import at_least_one

__all__ = ["FlowMapDistillation", "mean_velocity"]


def mean_velocity(
    field: VectorField,
    x: Float[Tensor, "batch *event"],
    start: float | Float[Tensor, ""],
    end: float,
    *,
    substeps: int = 10,
) -> Float[Tensor, "batch *event"]:
    """U with X = x + (t − s) u, where X is at time t on the path of dx/dt = v(x, t) that is at x at time s.

    u belongs to the point at the start of the step, and obeys v + (t − s)(∂_s u + v·∂_x u) = u there; that of a point
    at the end of the step has the other sign.

    Args:
        field: v.
        x: Points at the start.
        start: s.
        end: t.
        substeps: Of the classical Runge-Kutta method.

    References:
        The identity with the other sign: Mean Flows (Geng et al., 2025), https://arxiv.org/abs/2505.13447
    """
    h, y = (end - start) / substeps, x
    for k in range(substeps):
        t = start + k * h
        a = field(y, t)
        b = field(y + 0.5 * h * a, t + 0.5 * h)
        c = field(y + 0.5 * h * b, t + 0.5 * h)
        y = y + h / 6.0 * (a + 2.0 * b + 2.0 * c + field(y + h * c, t + h))
    return (y - x) / (end - start)


class FlowMapDistillation(Objective):
    """mean |v_θ(x_k, k/n) − u_k|² over the n steps of a flow, u_k the mean velocity over step k of the flow as it was.

    n Euler steps along v_θ then go where the paths of the velocities at the beginning of the training go, however long
    the steps are; their weights are those of the very steps, as of any `EulerFlow`, so that what the fit leaves costs
    effective samples and biases nothing. Points x_k lie on those paths, which start from samples of the base: neither
    data nor energies are needed. Start from a trained flow of more steps.

    Args:
        generator: With one `EulerFlow`, of which the field is trained.
        substeps: Runge-Kutta steps of the velocities as they were, for each of the n steps.

    Raises:
        TypeError: If the Generator has not exactly one such flow, or a step before it is stochastic.
        ValueError: If `substeps` is not positive.

    References:
        FALCON: Few-step Accurate Likelihoods for Continuous Flows (Rehman et al., 2025),
        https://arxiv.org/abs/2512.09914, there for steps of any length; here the steps are fixed and solved backwards.
    """

    needs_samples = True

    def __init__(self, generator: Generator, *, substeps: int = 10) -> None:
        super().__init__(generator)
        joint, _ = generator.joint()
        flows = [k for k, t in enumerate(joint.transitions) if isinstance(t, EulerFlow)]
        if len(flows) != 1 or not joint.is_bijective:
            raise TypeError(
                f"FlowMapDistillation: expected Bijections with exactly one EulerFlow among them, got "
                f"{', '.join(type(t).__name__ for t in generator.transitions) or 'none'}."
            )
        self.substeps = at_least_one("FlowMapDistillation substeps", substeps)
        self._before = flows[0]
        self._kept: tuple[VectorField, ...] = ()

    @property
    def _flow(self) -> EulerFlow:
        return self.generator.transitions[self._before]

    @property
    def _taught(self) -> VectorField:
        """The velocities as they are when they are first needed: after parameters were loaded, before any step."""
        if not self._kept:
            self._kept = (copy.deepcopy(self._flow.field).requires_grad_(requires_grad=False),)
        return self._kept[0]

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss per coordinate, and the share of the mean square velocity that it is."""
        flow, taught = self._flow, self._taught
        with torch.no_grad():
            state, run = self.generator.base.sample(step.n_samples, step.rng, step.context), Run(step.rng, step.context)
            for transition in list(self.generator.transitions)[: self._before]:
                state, _ = transition(state, run)
            x, n, pairs = state[flow.name], flow.n_steps, []
            taught = taught.to(x)
            for k in range(n):
                u = mean_velocity(taught, x, k / n, (k + 1) / n, substeps=self.substeps)
                pairs.append((k, x, u))
                x = x + u / n
        finite = torch.isfinite(x).flatten(1).all(1)
        loss = size = torch.zeros((), dtype=torch.float64, device=x.device)
        for k, x, u in pairs:
            off = flow.field(x[finite], k / n) - u[finite]
            loss = loss + off.double().square().mean() / n
            size = size + u[finite].double().square().mean() / n
        return loss, {
            "flow_map": loss.detach(),
            "relative": loss.detach() / size,
            "n_failed": (~finite).sum(),
        }

    def memory(self) -> dict:
        """The velocities that are taught."""
        return {"taught": self._taught.state_dict()}

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue with the velocities that were taught before."""
        self._taught.load_state_dict(memory["taught"])
