"""What quality to expect at a size, from what was measured with this package, and where that is extrapolated."""

import math

from boltzflow.preparation.recipes import SMALL
from boltzflow.simulation.settings import LARGE

__all__ = ["expectation"]

REFERENCE_DIMENSION, REFERENCE_ESS = 60, 0.92
"""The shipped checkpoint of alanine dipeptide, see docs/results.md."""
REFERENCE_ACCEPTANCE = 0.86
"""Of that checkpoint's configurations as moves at 300 K, see benchmarks/learned_moves.py."""
LIKELIHOOD_ESS = 0.47
"""After the recipe "likelihood" as it is written for alanine dipeptide, seed 1, 20 000 samples."""


def expectation(dimension: int, *, torch_forces: bool = True, periodic: bool = False) -> list[str]:
    """Sentences on what a sampler of this size reaches.

    Args:
        dimension: Degrees of freedom.
        torch_forces: Whether the torch force field knows all forces of the System.
        periodic: Whether the System is in a box.
    """
    if periodic:
        return [
            "In a periodic box plain molecular dynamics by OpenMM is what runs: correct up to its time step. Flows and "
            "parallel tempering of this package are for molecules in infinite space; the torch force field evaluates "
            "boxes as well, eagerly and with converged Ewald sums, for reweighting and for methods of your own.",
        ]
    if not torch_forces:
        return [
            "Only OpenMM knows all forces of this system, so plain molecular dynamics is what runs: correct up to its "
            "time step, and as slow at crossing barriers as the molecule itself.",
        ]
    low, high = (ess ** (dimension / REFERENCE_DIMENSION) for ess in (LIKELIHOOD_ESS, REFERENCE_ESS))
    measured = (
        f"Measured with this package on alanine dipeptide ({REFERENCE_DIMENSION} dimensions): {LIKELIHOOD_ESS:.0%} "
        f"effective samples after the recipe likelihood, {REFERENCE_ESS:.0%} from the shipped checkpoint, whose two "
        "stages were longer (1.3e8 energies)."
    )
    if dimension > LARGE:
        return [
            f"A single flow over all {dimension} coordinates would give about one effective sample, whatever number is "
            "drawn: the variance of its log-weights grows about linearly with the dimension, and ESS/n falls as the "
            "exponential of that. Therefore the recipe is parallel tempering, with all temperatures weighted by MBAR.",
            "How long parallel tempering takes to converge at this size was not measured. Side chains and local motion "
            "come first; folding takes longer than the recipe. Look at R-hat and round trips before you believe an "
            "average.",
            "A flow's configurations as moves in it (`simulate --moves`) stay exact, but their acceptance falls "
            "exponentially with the dimension as well: they are for small molecules.",
        ]
    # log-weights of variance −log ESS, Gaussian: the odds of a move have twice that variance and minus it as mean
    rare, frequent = (math.erfc(math.sqrt(-math.log(ess)) / 2) for ess in (low, high))
    moves = (
        "A trained flow can also propose moves in parallel tempering (`simulate --moves`), which is exact without "
        f"weights. Measured on alanine dipeptide: {REFERENCE_ACCEPTANCE:.0%} accepted with the shipped checkpoint; at "
        f"the two errors per coordinate above, {rare:.0%} to {frequent:.0%} in {dimension} dimensions."
    )
    if dimension > SMALL:
        return [
            measured,
            f"At the same error per coordinate that would be {low:.0%} and {high:.0%} in {dimension} dimensions, "
            "extrapolated: the variance of the log-weights grows about linearly with the dimension. Nothing of this "
            "size was measured, and each coordinate is harder to learn in a larger molecule: expect less, and compare "
            "with parallel tempering, which is one of the recipes.",
            moves,
        ]
    text = (
        f"At the same error per coordinate that would be {low:.0%} and {high:.0%} in {dimension} dimensions; "
        "extrapolated, because the variance of the log-weights grows about linearly with the dimension."
        if dimension > REFERENCE_DIMENSION
        else "Smaller molecules of the same kind should do as well."
    )
    return [
        measured,
        text,
        moves,
        "Rings, and groups that are joined only by weak interactions, are harder than chains.",
    ]
