"""Section of a run configuration for the natural gradient."""

from pydantic import Field

from boltzflow.io.section import Section

__all__ = ["NaturalGradientConfig"]


class NaturalGradientConfig(Section):
    """Steps in the metric of the densities themselves instead of AdamW's; `learning_rate` 0.1 to 0.5 then."""

    rows: int = Field(
        0, ge=0, description="Samples whose scores estimate the Fisher matrix, the last drawn; 0 = AdamW instead."
    )
    batch_size: int = Field(128, ge=1, description="Samples drawn at once.")
    every: int = Field(4, ge=1, description="Steps from one draw to the next.")
    damping: float = Field(0.1, gt=0, description="Added to the Fisher matrix, in units of its mean eigenvalue.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the running mean of gradients.")
    max_change: float = Field(
        0.3,
        gt=0,
        description="Root mean square change of log q in a whole step, in nats; longer ones are shortened.",
    )
