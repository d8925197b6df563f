"""The frames of another ensemble as a base, so that log Z of a Generator is a free-energy difference."""

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.run import Context
from boltzflow.state import Space, State
from boltzflow.targets._noise import uniform
from boltzflow.targets.target import Base, Target

__all__ = ["FramesBase"]


class FramesBase(Base):
    """Frames sampled from a Target, redrawn at random; log Z is unknown, so results are relative to this base.

    A sampled State carries one more field, `frame` (integer), the index of the frame that each row came from: rows of
    one frame are not independent, and error bars are computed between frames, or between groups of them.

    Args:
        frames: State that holds at least the Target's fields.
        target: What the frames were sampled from; it gives their reduced energies.
        log_weights: Log-weights of the frames, shape (n_frames,); None = equal.
        groups: Which frames depend on each other, such as those of one chain, shape (n_frames,), integers >= 0; None =
            every frame by itself.
        context: Context under which the frames were sampled. The energies are evaluated under it, whatever the
            context of the run: an ensemble has one temperature.
        name: By default "frames of" the Target.

    Raises:
        ValueError: If the frames lack a field or hold non-finite coordinates, the log-weights do not fit or are NaN, or
            the groups do not fit.
    """

    def __init__(
        self,
        frames: State,
        target: Target,
        *,
        log_weights: Tensor | None = None,
        groups: Tensor | None = None,
        context: Context | None = None,
        name: str | None = None,
    ) -> None:
        missing = sorted(set(target.fields) - set(frames.fields))
        if missing:
            raise ValueError(
                f"FramesBase: the frames lack fields {missing} of {target.name}; they hold {sorted(frames.fields)}."
            )
        super().__init__(target.fields, name=name or f"frames of {target.name}")
        self.measure = target.measure
        self.context = context
        # a tuple, so that the Target is no submodule: checkpoints hold none
        self._target = (target,)
        for field in target.fields:
            bad = int((~torch.isfinite(frames[field])).flatten(1).any(1).sum())
            if bad:
                raise ValueError(
                    f"FramesBase: {bad} of {len(frames)} frames hold non-finite values in {field!r}; drop them first."
                )
            self.register_buffer(f"frames_{field}", frames[field].detach().clone(), persistent=False)
        if log_weights is None:
            log_weights = torch.zeros(len(frames), dtype=torch.float64, device=frames.device)
        if log_weights.shape != (len(frames),) or torch.isnan(log_weights).any() or (log_weights == torch.inf).any():
            raise ValueError(
                f"FramesBase log_weights: expected shape ({len(frames)},) without NaN or +inf, "
                f"got shape {tuple(log_weights.shape)}."
            )
        cumulative = torch.softmax(log_weights.detach().double(), 0).cumsum(0)
        # integers, because a cast of the module to float32 would spoil the sums
        self.register_buffer("_cumulative", (cumulative * 2.0**62).round().to(torch.int64), persistent=False)
        groups = torch.arange(len(frames)) if groups is None else groups
        if groups.shape != (len(frames),) or groups.is_floating_point() or int(groups.min()) < 0:
            raise ValueError(
                f"FramesBase groups: expected integers >= 0 of shape ({len(frames)},), got {groups.dtype} of shape "
                f"{tuple(groups.shape)}."
            )
        self.register_buffer("groups", groups.to(device=frames.device, dtype=torch.int64), persistent=False)

    @property
    def target(self) -> Target:
        """What the frames were sampled from."""
        return self._target[0]

    def reduced_energy(self, state: State, context: Context | None = None) -> Float[Tensor, " batch"]:
        """Reduced energy of the frames' own Target under their own context, shape (batch,)."""
        return self.target.reduced_energy(state, self.context)

    def energy_and_force(
        self, state: State, context: Context | None = None
    ) -> tuple[Float[Tensor, " batch"], dict[str, Tensor]]:
        """Energy and force of the frames' own Target under their own context."""
        return self.target.energy_and_force(state, self.context)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n frames with replacement, in proportion to their weights."""
        u = uniform((n,), rng, self._cumulative)
        frame = torch.searchsorted(self._cumulative, (u * self._cumulative[-1]).to(torch.int64), right=True)
        # u times the last entry may round up to it
        frame = frame.clamp_max(len(self._cumulative) - 1)
        values = {name: getattr(self, f"frames_{name}")[frame] for name in self.fields}
        return State({**values, "frame": frame}, {**self.fields, "frame": Space("integer", ())})
