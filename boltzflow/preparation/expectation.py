"""What quality to expect at a size, from what was measured with this package, and where that is extrapolated."""

import math

from boltzflow.preparation.recipes import SMALL
from boltzflow.simulation.settings import LARGE

__all__ = ["expectation"]

REFERENCE_DIMENSION, REFERENCE_ESS = 60, 0.92
"""The shipped checkpoint of alanine dipeptide, see docs/results.md."""


def expectation(dimension: int, *, torch_forces: bool = True) -> list[str]:
    """Sentences on what a sampler of this size reaches.

    Args:
        dimension: Degrees of freedom.
        torch_forces: Whether the torch force field knows all forces of the System.
    """
    if not torch_forces:
        return [
            "Only OpenMM knows all forces of this system, so plain molecular dynamics is what runs: correct up to its "
            "time step, and as slow at crossing barriers as the molecule itself.",
        ]
    variance = -math.log(REFERENCE_ESS)
    scaled = math.exp(-variance * dimension / REFERENCE_DIMENSION)
    measured = (
        f"Measured here: {REFERENCE_ESS:.0%} effective samples for alanine dipeptide ({REFERENCE_DIMENSION} "
        "dimensions) after two stages of training and 1.3e8 energies; see docs/results.md."
    )
    if dimension > LARGE:
        return [
            f"A single flow over all {dimension} coordinates would give about one effective sample, whatever number is "
            "drawn: the variance of its log-weights grows about linearly with the dimension, and ESS/n falls as the "
            "exponential of that. Therefore the recipe is parallel tempering, with all temperatures weighted by MBAR.",
            measured,
            "Parallel tempering at this size samples side chains and local motion within hours; folding takes longer. "
            "Look at R-hat and round trips before you believe an average.",
        ]
    if dimension > SMALL:
        return [
            measured,
            f"At the same error per coordinate that would be {scaled:.0%} in {dimension} dimensions, an upper bound: "
            "each coordinate is harder to learn in a larger molecule. Nothing of this size was measured; expect some "
            "per cent to some tens of per cent, and compare with parallel tempering, which is one of the recipes.",
        ]
    text = (
        f"At the same error per coordinate that would be {scaled:.0%} in {dimension} dimensions; extrapolated, because "
        "the variance of the log-weights grows about linearly with the dimension."
        if dimension > REFERENCE_DIMENSION
        else "Smaller molecules of the same kind should do as well."
    )
    return [measured, text, "Rings, and groups that are joined only by weak interactions, are harder than chains."]
