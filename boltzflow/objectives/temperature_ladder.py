"""Temperature-annealed Boltzmann generators: a ladder of temperatures, each from weighted samples of the one above."""

import itertools

from boltzflow._typing import Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.objectives.buffered import BufferedKL
from boltzflow.targets.target import Target

__all__ = ["TemperatureLadder", "geometric_ladder"]


def geometric_ladder(hottest: float, n_rungs: int) -> list[float]:
    """Temperatures below `hottest` down to 1, with a constant ratio.

    Args:
        hottest: Where the ladder starts, relative to the target's temperature; it is not in the list.
        n_rungs: Number of temperatures, 1 included.

    Raises:
        ValueError: If hottest is below 1 or there is no rung.

    Example:
        >>> geometric_ladder(4.0, 2)
        [2.0, 1.0]
    """
    if hottest < 1.0 or n_rungs < 1:
        raise ValueError(f"geometric_ladder: expected hottest >= 1 and a rung, got {hottest} and {n_rungs} rungs.")
    return [hottest ** (1.0 - (k + 1) / n_rungs) for k in range(n_rungs)]


class TemperatureLadder(BufferedKL):
    """Stage k trains on p_k ∝ exp(−u/τ_k) with τ falling to 1, from the samples of the model trained at τ_(k−1).

    The Generator must stand at a temperature above τ_0 where the first stage starts, at one so high that it finds all
    modes by `ReverseKL` on the `Tempered` Target.

    Args:
        generator: What is trained; bijective.
        target: Whose energy gives the weights, at τ = 1.
        temperatures: τ_k of every stage, relative to the target's; the last is 1.
        stage_steps: Optimisation steps at each.
        buffer_size: Samples in each buffer.
        batch_size: Rows per step.
        clip_fraction: Share of the rows whose weights are lowered to the largest of the others.
        control_variate: See `BufferedKL`; the published method does without, and so has the likelihood's noise.
        chi_squared: See `BufferedKL`.

    Raises:
        TypeError: If the Generator is not bijective.
        ValueError: If the ladder does not end at the target, or rises.

    References:
        Temperature-Annealed Boltzmann Generators (Schopmans and Friederich, ICML 2025), section 3.
    """

    def __init__(
        self,
        generator: Generator,
        target: Target,
        *,
        temperatures: list[float],
        stage_steps: int,
        buffer_size: int,
        batch_size: int,
        clip_fraction: float = 1e-4,
        control_variate: bool = True,
        chi_squared: float = 0.0,
    ) -> None:
        falls = all(a >= b for a, b in itertools.pairwise(temperatures))
        if not temperatures or not falls or temperatures[-1] != 1.0:
            raise ValueError(
                "TemperatureLadder temperatures: expected them to fall and to end at the target's, 1, got "
                f"{temperatures}."
            )
        super().__init__(
            generator,
            target,
            n_stages=len(temperatures),
            stage_steps=stage_steps,
            buffer_size=buffer_size,
            batch_size=batch_size,
            clip_fraction=clip_fraction,
            control_variate=control_variate,
            chi_squared=chi_squared,
        )
        self.temperatures = tuple(temperatures)

    def log_ratio(
        self, stage: int, u: Float64[Tensor, " buffer"], log_q: Float64[Tensor, " buffer"]
    ) -> tuple[Float64[Tensor, " buffer"], dict[str, float]]:
        """−u/τ − log q, and τ."""
        temperature = self.temperatures[stage]
        return -u / temperature - log_q, {"temperature_ratio": temperature}
