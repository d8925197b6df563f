"""An objective from its configuration."""

from boltzflow.generators.generator import Generator
from boltzflow.io.config import ObjectiveConfig
from boltzflow.objectives.coverage import CoverageLikelihood
from boltzflow.objectives.likelihood import MaximumLikelihood
from boltzflow.objectives.mixture import Mixture
from boltzflow.objectives.objective import Objective
from boltzflow.objectives.path_likelihood import PathLikelihood
from boltzflow.objectives.reverse_kl import ReverseKL
from boltzflow.objectives.self_weighted import SelfWeightedKL
from boltzflow.targets.target import Target

__all__ = ["build_objective"]


def build_objective(generator: Generator, target: Target, config: ObjectiveConfig) -> Objective:
    """Make the weighted sum of terms that the configuration asks for.

    Args:
        generator: What is trained.
        target: Whose energy trains; the likelihood of bijective Generators needs none.
        config: Weights and settings.

    Raises:
        ValueError: If no term has a weight above 0.
    """
    terms: list[tuple[float, Objective]] = []
    if config.likelihood > 0:
        bijective = generator.is_bijective
        likelihood = MaximumLikelihood(generator) if bijective else PathLikelihood(generator, target)
        terms.append((config.likelihood, likelihood))
    if config.coverage > 0:
        terms.append((config.coverage, CoverageLikelihood(generator, target)))
    if config.reverse_kl > 0:
        reverse = ReverseKL(
            generator,
            target,
            path_gradient=config.path_gradient,
            energy_cut=config.energy_cut,
            energy_base=config.energy_base,
        )
        terms.append((config.reverse_kl, reverse))
    if config.self_forward_kl > 0 or config.self_reverse_kl > 0:
        own = SelfWeightedKL(generator, target, forward=config.self_forward_kl, reverse=config.self_reverse_kl)
        terms.append((1.0, own))
    if not terms:
        raise ValueError(
            "objective: every weight is 0; set objective.likelihood, coverage, reverse_kl, self_forward_kl or "
            "self_reverse_kl above 0."
        )
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else Mixture(terms)
