"""Weighted likelihood on a buffer of the Generator's own samples, stage by stage towards the Target."""

import abc
import copy
import math
from collections.abc import Mapping
from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.objective import Objective, Step, ess_fraction, finite_log_prob
from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.targets.target import Target

__all__ = ["BufferedKL"]

_SHARD = 2048
"""Rows that are generated at once."""


class BufferedKL(Objective, abc.ABC):
    """KL(p_k‖q) for a sequence of densities p_k, each from samples of the model at the start of its stage.

    At the start of stage k the Generator, q_k then, fills a buffer; one energy per row, no force. A subclass says how
    the rows are weighted, w = p_k/q_k. All steps of the stage train on rows of the buffer:

        ∇KL(p_k‖q) = −E_{q_k}[(w − q/q_k) ∇log q],

    where the second term has zero mean and makes the variance vanish at q = p_k. Half of the rows are drawn in
    proportion to |w − 1|, the size of their coefficients to begin with, which they are then divided by. So rare states
    of which the model has too little are trained on more often, with less noise. Without `control_variate` rows are
    drawn in proportion to w instead, and their likelihood is maximised: an estimate of the same gradient with the
    noise of a likelihood.

    A rare state that the model holds too thin weighs next to nothing in the KL divergence, and the noise of all others
    can wash it out. With `chi_squared` = c the divergence c χ²(p_k‖q) is added, whose gradient

        −E_{q_k}[(w p_k/q − q/q_k) ∇log q]

    sees it by what it spoils in the weights: χ² + 1 is the inverse of the sampling efficiency.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives the weights; kept out of the module tree.
        n_stages: Number of buffers.
        stage_steps: Optimisation steps on each.
        buffer_size: Samples in each.
        batch_size: Rows of the buffer per step.
        clip_fraction: Share of the rows whose weights are lowered to the largest of the others.
        control_variate: Whether to subtract q/q_k from w.
        chi_squared: Weight of the divergence χ²(p_k‖q) beside the KL divergence; needs the control variate.

    Raises:
        TypeError: If the Generator is not bijective.
        ValueError: If `chi_squared` is set without the control variate.

    References:
        Flow annealed importance sampling bootstrap (Midgley et al., 2023), eq. 3 with α = 2, for χ².
    """

    can_be_sharded = False
    max_present_weight = 50.0
    """Largest p_k/q in the gradient of χ²."""
    max_ratio = 20.0
    """Largest q/q_k in the control variate, in units of the row's weight where that is above 1."""

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        n_stages: int,
        stage_steps: int,
        buffer_size: int,
        batch_size: int,
        clip_fraction: float = 1e-4,
        control_variate: bool = True,
        chi_squared: float = 0.0,
    ) -> None:
        super().__init__(generator)
        if not generator.is_bijective:
            raise TypeError(f"{type(self).__name__}: needs a Generator of Bijections, whose density is known.")
        if chi_squared and not control_variate:
            raise ValueError(
                f"{type(self).__name__}: chi_squared needs the control variate; set control_variate to true."
            )
        self._target = (target,)
        self.n_stages, self.stage_steps = n_stages, stage_steps
        self.buffer_size, self.batch_size = buffer_size, batch_size
        self.clip_fraction, self.control_variate = clip_fraction, control_variate
        self.chi_squared = chi_squared
        self._stage = -1
        self._start: dict[str, Any] = {}
        self._rows: State | None = None

    @abc.abstractmethod
    def log_ratio(
        self, stage: int, u: Float64[Tensor, " buffer"], log_q: Float64[Tensor, " buffer"]
    ) -> tuple[Float64[Tensor, " buffer"], dict[str, float]]:
        """Log-ratios p_k/q_k of the buffer's rows up to a constant, from their energies u (+inf allowed) and log q_k.

        Returns:
            The log-ratios, −inf where u = +inf, and numbers to log.
        """

    def forward(self, step: Step) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """A loss whose gradient is the estimate; with `control_variate` its value means nothing."""
        rows = self._draw_rows(step)
        log_q, finite = finite_log_prob(self.generator, self._rows.index(rows), step.context)
        coefficient = torch.ones_like(self._weight[rows])
        if self.control_variate:
            ratio = torch.zeros_like(coefficient)
            if bool(finite.any()):
                ratio[finite] = (log_q.detach() - self._log_q[rows][finite]).exp()
            coefficient = self._coefficient(self._weight[rows], ratio) / self._density[rows]
        loss = -(coefficient[finite] * log_q).mean() if bool(finite.any()) else log_q.mean()
        return loss, {**self._logged, "n_failed_data": (~finite).sum()}

    def _draw_rows(self, step: Step) -> Int[Tensor, " batch"]:
        """Rows of the buffer of the step, which is filled where a stage begins."""
        stage = min(step.index // self.stage_steps, self.n_stages - 1)
        if self._rows is None or stage != self._stage:
            self._fill(stage, step)
        at = torch.rand(self.batch_size, dtype=torch.float64, generator=step.rng, device=step.rng.device)
        return torch.searchsorted(self._cumulative, at.to(self._cumulative.device)).clamp(max=len(self._rows) - 1)

    def _coefficient(self, weight: Tensor, ratio: Tensor) -> Tensor:
        """Of ∇log q, per row: w − q/q_k, and the share of χ² w (p_k/q) − q/q_k, with large ratios held back."""
        held = ratio.minimum(self.max_ratio * weight.clamp(min=1.0))
        present = (weight / ratio.clamp(min=1e-12)).clamp(max=self.max_present_weight)
        return weight - held + self.chi_squared * (weight * present - held)

    def _fill(self, stage: int, step: Step) -> None:
        """Draw the buffer of a stage with the present parameters or, after a resume, with those of its start."""
        if self._start.get("stage") != stage:
            seed = torch.randint(2**62, (), generator=step.rng, device=step.rng.device)
            parameters = {k: v.detach().clone() for k, v in self.generator.state_dict().items()}
            self._start = {"stage": stage, "seed": int(seed), "parameters": parameters}
            sampler = self.generator
        else:
            # a base is shared, not copied
            sampler = copy.deepcopy(self.generator)
            sampler.load_state_dict(self._start["parameters"])
        self._rows, u, self._log_q = self._draw(sampler, step)
        log_ratio, numbers = self.log_ratio(stage, u, self._log_q)
        log_weight = log_ratio - torch.logsumexp(log_ratio, 0) + math.log(len(log_ratio))
        allowed = torch.quantile(log_weight[: 2**24], 1.0 - self.clip_fraction)
        self._weight = log_weight.clamp(max=allowed).exp()
        self._weight = self._weight / self._weight.mean()
        self._density = self._weight
        if self.control_variate:
            excess = self._coefficient(self._weight, torch.ones_like(self._weight)).abs() + 1e-12
            self._density = 0.5 + 0.5 * excess / excess.mean()
        self._cumulative = self._density.cumsum(0) / self._density.sum()
        self._stage = stage
        self._logged = {
            "stage": torch.tensor(float(stage)),
            "buffer_ess_fraction": ess_fraction(log_weight).cpu(),
            **{name: torch.tensor(value) for name, value in numbers.items()},
        }

    @torch.no_grad()
    def _draw(self, sampler: Generator, step: Step) -> tuple[State, Tensor, Tensor]:
        states, energies, densities = [], [], []
        for shard in range(-(-self.buffer_size // _SHARD)):
            n = min(_SHARD, self.buffer_size - shard * _SHARD)
            rng = make_rng(self._start["seed"], shard, device=step.rng.device)
            trajectory = sampler.rollout(n, self._target[0], rng, context=step.context)
            step.ledger.merge(trajectory.ledger)
            log_q = -sum(trajectory.log_ratios, trajectory.base_energy) - sampler.base.log_z
            # rows without an image under the flow have no density; those without energy have one, which should fall
            mapped = torch.isfinite(log_q) & ~trajectory.failed
            end = trajectory.end
            states.append(State({k: v[mapped] for k, v in end.fields.items()}, end.spaces))
            energies.append(trajectory.target_energy[mapped])
            densities.append(log_q[mapped])
        fields = {k: torch.cat([s.fields[k] for s in states]) for k in states[0].fields}
        return State(fields, states[0].spaces), torch.cat(energies), torch.cat(densities)

    def memory(self) -> dict:
        """Parameters at the start of the stage, from which its buffer is drawn again."""
        return dict(self._start)

    def recall(self, memory: Mapping[str, Any]) -> None:
        """Continue from `memory()`; the buffer is drawn again, and counted again, at the next step."""
        self._start, self._rows = dict(memory), None
