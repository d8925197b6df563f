"""Learning-rate schedules as functions of the step alone, so that resuming needs no state."""

import math

__all__ = ["warmup_cosine"]


def warmup_cosine(step: int, *, n_steps: int, warmup_steps: int, final_fraction: float) -> float:
    """Factor on the learning rate: linear warm-up, then cosine decay to `final_fraction`.

    Args:
        step: Index of the step, from 0.
        n_steps: Steps of the whole run.
        warmup_steps: Steps of the warm-up.
        final_fraction: Factor at the last step.

    Example:
        >>> warmup_cosine(0, n_steps=100, warmup_steps=10, final_fraction=0.0)
        0.1
        >>> warmup_cosine(100, n_steps=100, warmup_steps=10, final_fraction=0.0)
        0.0
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, n_steps - warmup_steps))
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
