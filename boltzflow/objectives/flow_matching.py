"""Flow matching: regression of a velocity field on straight paths between samples of the base and data."""

from collections.abc import Sequence
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment

from boltzflow._typing import Float, Tensor
from boltzflow.coordinates import circular_difference, couple, match, matched_distances
from boltzflow.generators.generator import Generator
from boltzflow.networks import VectorField
from boltzflow.objectives.objective import Objective, Step, ess_fraction
from boltzflow.objectives.pair_weights import pair_log_weights
from boltzflow.run import Run
from boltzflow.state import State
from boltzflow.transitions import (
    ApproximateAdaptiveFlow,
    EulerFlow,
    InterpolantSDE,
    PerturbedFlow,
    RungeKuttaFlow,
)

__all__ = ["FlowMatching"]

Pairs = Literal["independent", "optimal", "matched", "optimal matched", "equivariant"]


FLOWS = (ApproximateAdaptiveFlow, EulerFlow, InterpolantSDE, PerturbedFlow, RungeKuttaFlow)
"""Transitions along a vector field that they call `field`."""


class FlowMatching(Objective):
    """E |v(x_t, t) − (x_1 − x_0)|², x_t = (1 − t) x_0 + t x_1, with x_0 from the base, x_1 from data, t uniform.

    Its minimum carries the base to the density of the data, however x_0 and x_1 are paired; pairs that lie close make
    the paths straighter, so that fewer steps do. Pairing within a batch leaves both marginals as they are. Matching
    permutes and rotates data, so it is right where base and data have that symmetry, and of use where the field has it.
    Of angles the paths are those of the torus, along the shorter way. No energy is evaluated.

    Args:
        generator: With one `EulerFlow` or another flow along a `VectorField`, which is trained; what stands behind it
            is inverted on the data.
        pairs: "independent"; "optimal" assigns a batch by squared distances; "matched" permutes and rotates each row of
            the data towards its partner; "optimal matched" does the one and then the other; "equivariant" assigns by
            the distances that are left after matching all pairs, see `boltzflow.coordinates.couple`.
        permuted: Groups of interchangeable particles, for matching; None = those of one type of the field.
        rotations: "proper", or "all" where the field goes with reflections too; None = as the field does. Flows that
            do not start from a mean-free normal distribution, such as those of molecules of one hand and labelling,
            have None = "proper", and nothing to permute.
        rotated: Turn the ends of every pair by one random rotation, so that a field without that symmetry learns it:
            right where the target has it.
        entropy: Weigh pairs by their costs as entropic transport does, see `pair_log_weights`, instead of assigning
            them; None = all alike.

    Raises:
        TypeError: If the Generator has not exactly one such flow, or its field does not say what it goes with.
        ValueError: If pairs are to be assigned and weighed, or particles of different types permuted; in training, if
            the data have another shape, or a centroid where their space has none.

    References:
        Flow matching (Lipman et al., 2023), https://arxiv.org/abs/2210.02747; pairs: Tong et al. (2024),
        https://arxiv.org/abs/2302.00482; Klein, Krämer, Noé (2023), https://arxiv.org/abs/2306.15030; on tori: Chen,
        Lipman (2024), https://arxiv.org/abs/2302.03660
    """

    needs_data = True

    def __init__(
        self,
        generator: Generator,
        *,
        pairs: Pairs = "independent",
        permuted: Sequence[Sequence[int]] | None = None,
        rotations: Literal["proper", "all"] | None = None,
        rotated: bool = False,
        entropy: float | None = None,
    ) -> None:
        super().__init__(generator)
        flows = [k for k, t in enumerate(generator.transitions) if isinstance(t, FLOWS)]
        if len(flows) != 1:
            raise TypeError(
                f"{type(self).__name__}: expected a Generator with one EulerFlow or another flow along a field, got "
                f"{len(flows)} of them."
            )
        self._place, self._circular = flows[0], False
        field = generator.transitions[self._place].field
        if pairs in ("matched", "optimal matched", "equivariant"):
            _check_alike(field, permuted, rotations)
        if entropy is not None and pairs not in ("independent", "matched"):
            raise ValueError(
                f"FlowMatching entropy: {pairs!r} assigns the rows of a batch, which leaves nothing to weigh; set "
                "pairs to 'independent' or 'matched'."
            )
        self.pairs, self.rotated, self.entropy = pairs, rotated, entropy
        # what comes before the flow may have taken a hand and an order of labels
        is_symmetric = self._place == 0 and generator.base.measure == "mean-free"
        self.permuted = _groups(field.types or () if is_symmetric else ()) if permuted is None else permuted
        self.rotations = rotations or ("all" if is_symmetric and field.reflects else "proper")

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Mean squared error per coordinate."""
        flow = self.generator.transitions[self._place]
        with torch.no_grad():
            x0, x1 = self._ends(step, flow.name)
            log_weights = self._log_weights(x0, x1)
            t = torch.rand(len(x0), dtype=torch.float64, device=step.rng.device, generator=step.rng).to(x0)
        u = x1 - x0
        x = x0 + t.reshape(-1, *[1] * (u.ndim - 1)) * u
        error = (flow.field.evaluate("forward", x, t) - u).square().flatten(1).mean(1)
        length = u.flatten(1).norm(dim=1)
        if log_weights is None:
            loss = error.mean()
            return loss, {"flow_matching": loss.detach(), "path_length": length.mean()}
        w = log_weights.exp().to(error)
        loss = (w * error).mean()
        logged = {"flow_matching": loss.detach(), "path_length": (w * length).mean() / w.mean()}
        return loss, {**logged, "pairs_ess_fraction": ess_fraction(log_weights)}

    def _log_weights(self, x0: Tensor, x1: Tensor) -> Tensor | None:
        if self.entropy is None:
            return None
        if self.pairs == "matched":
            cost = matched_distances(x1, x0, permuted=self.permuted, rotations=self.rotations)
        else:
            cost = self._distances(x0, x1)
        return pair_log_weights(cost, entropy=self.entropy)

    def _distances(self, x0: Tensor, x1: Tensor) -> Tensor:
        """Squared distances of all pairs."""
        if self._circular:
            return circular_difference(x1.flatten(1)[None], x0.flatten(1)[:, None]).square().sum(2)
        return torch.cdist(x0.flatten(1), x1.flatten(1)).square()

    def _ends(self, step: Step, name: str) -> tuple[Tensor, Tensor]:
        """Pairs of samples of the base and data, both where the flow begins and ends."""
        run = Run(step.rng, step.context, ledger=step.ledger)
        state = step.data
        for transition in reversed(self.generator.transitions[self._place + 1 :]):
            state, _ = transition.reverse(state, run)
        start: State = self.generator.base.sample(len(state), step.rng, step.context)
        for transition in self.generator.transitions[: self._place]:
            start, _ = transition(start, run)
        _check_data(state, start, name)
        x0, x1 = start[name], state[name]
        if x0.ndim == 3:
            # velocities of particles have no mean, and no part in where their centre lies
            x0, x1 = (x - x.mean(1, keepdim=True) for x in (x0, x1))
        if "matched" in self.pairs and not self.permuted:
            # rotated alike, all rows can be compared with one another
            one = x1[:1].expand_as(x1)
            x0, x1 = (match(x, one, rotations=self.rotations) for x in (x0, x1))
        self._circular = start.spaces[name].kind == "circle"
        if "optimal" in self.pairs:
            cost = self._distances(x0, x1).cpu().numpy()
            x1 = x1[torch.from_numpy(linear_sum_assignment(cost)[1]).to(x1.device)]
        if self.pairs == "equivariant":
            x1 = couple(x1, x0, permuted=self.permuted, rotations=self.rotations)
        if "matched" in self.pairs:
            x1 = match(x1, x0, permuted=self.permuted, rotations=self.rotations)
        if self.rotated:
            turns = _random_rotations(len(x0), x0.shape[-1], step.rng).to(x0)
            x0, x1 = x0 @ turns, x1 @ turns
        return x0, (x0 + circular_difference(x1, x0) if self._circular else x1)


def _check_data(state: State, start: State, name: str) -> None:
    """That rows of data are such as the flow makes them."""
    shape = start.spaces[name].shape
    if name not in state or state.spaces[name].shape != shape:
        found = {field: space.shape for field, space in state.spaces.items()}
        raise ValueError(
            f"FlowMatching: expected data with {name!r} of shape {shape}, got {found}, rows of another system."
        )
    x = state[name]
    if len(shape) == 2 and state.spaces[name].dimension == (shape[0] - 1) * shape[1]:
        centroid = x.mean(1).norm(dim=1).max()
        if centroid > 1e-3 * x.square().mean().sqrt():
            raise ValueError(
                f"FlowMatching: expected data without a centre of mass, got centroids of up to {centroid:.3g}; "
                f"subtract {name}.mean(1, keepdim=True)."
            )


def _check_alike(field: VectorField, permuted: Sequence[Sequence[int]] | None, rotations: str | None) -> None:
    """That the field says, or the caller, what the particles may be exchanged for."""
    if field.types is None and (permuted is None or rotations is None):
        raise TypeError(
            f"FlowMatching: {type(field).__name__} does not say which particles are alike; give permuted and "
            "rotations, or pairs='optimal'."
        )
    for group in permuted or () if field.types is not None else ():
        kinds = {field.types[k] for k in group}
        if len(kinds) > 1:
            raise ValueError(
                f"FlowMatching permuted: expected groups of particles of one type, got {list(group)} of types "
                f"{sorted(kinds)}, which {type(field).__name__} tells apart; leave permuted out, or group by type."
            )


def _groups(types: Sequence[int]) -> list[list[int]]:
    """Particles of every type that has more than one."""
    groups = [[k for k, one in enumerate(types) if one == kind] for kind in sorted(set(types))]
    return [group for group in groups if len(group) > 1]


def _random_rotations(n: int, dim: int, rng: torch.Generator) -> Float[Tensor, "n dim dim"]:
    """Proper rotations, uniform."""
    q, r = torch.linalg.qr(torch.randn(n, dim, dim, dtype=torch.float64, device=rng.device, generator=rng))
    q = q * r.diagonal(dim1=1, dim2=2).sign()[:, None]
    flip = torch.ones_like(q[:, 0])
    flip[:, 0] = torch.linalg.det(q).sign()
    return q * flip[:, None]
