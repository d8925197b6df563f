"""An objective from its configuration."""

import math

from boltzflow.generators.generator import Generator
from boltzflow.io.config import AnnealingConfig, BootstrapConfig, FlowMatchingConfig, ObjectiveConfig
from boltzflow.objectives.annealed_bootstrap import AnnealedBootstrap
from boltzflow.objectives.chi_squared import ChiSquared
from boltzflow.objectives.cooling import Cooling
from boltzflow.objectives.coverage import CoverageLikelihood
from boltzflow.objectives.energy_weighted import EnergyWeightedMatching
from boltzflow.objectives.flow_map import FlowMapDistillation
from boltzflow.objectives.flow_matching import FlowMatching
from boltzflow.objectives.force_likelihood import ForceLikelihood
from boltzflow.objectives.likelihood import MaximumLikelihood
from boltzflow.objectives.log_variance import LogVariance
from boltzflow.objectives.mass_transport import MassTransport
from boltzflow.objectives.mixture import Mixture
from boltzflow.objectives.objective import Objective
from boltzflow.objectives.path_kl import PathKL
from boltzflow.objectives.path_likelihood import PathLikelihood
from boltzflow.objectives.rectification import Rectification
from boltzflow.objectives.reverse_kl import ReverseKL
from boltzflow.objectives.self_weighted import SelfWeightedKL
from boltzflow.objectives.sequence import Sequence
from boltzflow.objectives.temperature_ladder import TemperatureLadder, geometric_ladder
from boltzflow.targets.target import Target
from boltzflow.targets.tempered import Tempered

__all__ = ["build_objective"]


def build_objective(
    generator: Generator, target: Target, config: ObjectiveConfig, *, batch_size: int = 512
) -> Objective:
    """Make the annealing and the weighted sum of terms that the configuration asks for.

    Args:
        generator: What is trained.
        target: Whose energy trains; the likelihood of bijective Generators needs none.
        config: Weights and settings.
        batch_size: Rows of a buffer per step, for an annealing that has one.

    Raises:
        ValueError: If no term has a weight above 0, or a term for one temperature is combined with annealing.
    """
    annealing = config.annealing
    if annealing.method == "none":
        return _terms(generator, target, config, batch_size)
    if config.bootstrap.weight > 0:
        raise ValueError(
            "objective: bootstrap replays weights for one temperature, and annealing changes it; set bootstrap.weight "
            "to 0 or annealing.method to none."
        )
    if config.force_likelihood > 0:
        raise ValueError(
            "objective: force_likelihood takes data at the temperature of their forces, and annealing changes it; set "
            "force_likelihood to 0 or annealing.method to none."
        )
    # at its own temperature a tempered target is the target
    terms = _terms(generator, Tempered(target), config, batch_size)
    buffered = _buffered(generator, target, annealing, batch_size)
    phases: list[tuple[int, Objective]] = []
    if annealing.method != "transport":
        fall = annealing.cooling_steps if annealing.method == "cooling" else 0
        hot = Cooling(terms, hottest=annealing.hottest, hot_steps=annealing.hot_steps, steps=fall)
        phases.append((annealing.hot_steps + fall, hot))
    if buffered is not None:
        phases.append((buffered.n_stages * buffered.stage_steps, buffered))
    return Sequence([phase for phase in phases if phase[0]] + [(0, terms)])


def _buffered(
    generator: Generator, target: Target, config: AnnealingConfig, batch_size: int
) -> MassTransport | TemperatureLadder | None:
    sizes = {
        "stage_steps": config.stage_steps,
        "buffer_size": config.buffer_size,
        "batch_size": batch_size,
        "clip_fraction": config.clip_fraction,
        "control_variate": config.control_variate,
        "chi_squared": config.chi_squared,
    }
    if config.method == "transport":
        bound = math.inf if config.max_entropy_loss is None else config.max_entropy_loss
        return MassTransport(
            generator, target, n_stages=config.stages, max_kl=config.max_kl, max_entropy_loss=bound, **sizes
        )
    temperatures = [1.0] * config.cold_stages
    if config.method == "ladder":
        temperatures = geometric_ladder(config.hottest, config.stages) + temperatures
    return TemperatureLadder(generator, target, temperatures=temperatures, **sizes) if temperatures else None


def _terms(generator: Generator, target: Target, config: ObjectiveConfig, batch_size: int) -> Objective:
    terms: list[tuple[float, Objective]] = []
    if config.likelihood > 0:
        known = generator.joint()[0].is_bijective
        likelihood = MaximumLikelihood(generator) if known else PathLikelihood(generator, target)
        terms.append((config.likelihood, likelihood))
    if config.force_likelihood > 0:
        terms.append((config.force_likelihood, ForceLikelihood(generator, target)))
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
    if config.path_forward_kl > 0 or config.path_reverse_kl > 0:
        path = PathKL(
            generator,
            target,
            forward=config.path_forward_kl,
            reverse=config.path_reverse_kl,
            min_efficiency=config.path_min_efficiency,
            max_residual=config.path_max_residual,
            energy_cut=config.energy_cut,
            energy_base=config.energy_base,
        )
        terms.append((1.0, path))
    if config.chi_squared > 0:
        terms.append((config.chi_squared, ChiSquared(generator, target)))
    for weight, paths in ((config.log_variance, "model"), (config.log_dispersion, "data")):
        if weight > 0:
            terms.append((weight, LogVariance(generator, target, paths=paths)))
    if config.bootstrap.weight > 0:
        terms.append((config.bootstrap.weight, _bootstrap(generator, target, config.bootstrap)))
    if config.flow_map.weight > 0:
        terms.append((config.flow_map.weight, FlowMapDistillation(generator, substeps=config.flow_map.substeps)))
    if config.flow_matching.weight > 0:
        terms.append((config.flow_matching.weight, _matching(generator, target, config.flow_matching, batch_size)))
    if not terms:
        raise ValueError(
            "objective: every weight is 0; set objective.likelihood, force_likelihood, coverage, reverse_kl, "
            "self_forward_kl, self_reverse_kl, path_forward_kl, path_reverse_kl, chi_squared, log_variance, "
            "log_dispersion, flow_matching.weight, flow_map.weight or bootstrap.weight above 0."
        )
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1.0 else Mixture(terms)


def _matching(generator: Generator, target: Target, config: FlowMatchingConfig, batch_size: int) -> Objective:
    if config.method == "rectified":
        return Rectification(generator, stage_steps=config.stage_steps)
    if config.method == "energy":
        return EnergyWeightedMatching(
            generator,
            target,
            n_stages=config.stages,
            stage_steps=config.stage_steps,
            buffer_size=config.buffer_size,
            batch_size=batch_size,
            pairs=config.pairs,
            min_efficiency=config.min_efficiency,
        )
    return FlowMatching(generator, pairs=config.pairs, rotated=config.rotated, entropy=config.entropy)


def _bootstrap(generator: Generator, target: Target, config: BootstrapConfig) -> AnnealedBootstrap:
    return AnnealedBootstrap(
        generator,
        target,
        n_levels=config.levels,
        n_leapfrog=config.leapfrog,
        step_size=config.step_size,
        updates=config.updates,
        buffer_batches=config.buffer_batches,
    )
