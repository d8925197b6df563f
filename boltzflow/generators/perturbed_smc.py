"""Sequential Monte Carlo on the latent positions of a flow and the noise of its perturbation."""

from collections.abc import Sequence

from boltzflow.generators.annealing import annealed_importance, smc
from boltzflow.generators.generator import Generator
from boltzflow.generators.schedule import Schedule
from boltzflow.paths import NoisyBase, perturbed_path
from boltzflow.targets.target import Base
from boltzflow.transitions.flow_noise import DropNoise
from boltzflow.transitions.flow_perturbation import FlowPerturbation
from boltzflow.transitions.gaussian_perturbation import GaussianPerturbation
from boltzflow.transitions.transition import Transition

__all__ = ["perturbed_smc"]


def perturbed_smc(
    base: Base,
    flow: FlowPerturbation | GaussianPerturbation,
    kernels: Transition | Sequence[Transition],
    schedule: Schedule | Sequence[float],
    *,
    threshold: float | None = 0.5,
) -> Generator:
    """Anneal (z, e) from p(z) N(e) to the density that the target has of them, then send them through the flow.

    The weight of a perturbed flow is noisy, and the noise is a variable like the others: kernels move it together with
    the latent positions, with gradients through Jacobian-vector products, and resampling acts on both. The last level
    is the target, so that samples are exact; the levels between are bridges. Errors as by `smc`.

    Args:
        base: Of the latent positions.
        flow: Kept as it is.
        kernels: Moves at every level; copied.
        schedule: From `find_schedule(NoisyBase(base, flow), target, kernels, path=perturbed_path(flow))`, which finds
            levels of constant conditional effective size; or levels that rise and end at 1.
        threshold: Resample when the effective fraction of the population is below; None = never, so that paths are
            independent and can be traced back (annealed importance sampling).

    Raises:
        AnnealingError: If the levels do not end at the target, or step sizes do not fit.

    References:
        Flow Perturbation to Accelerate Boltzmann Sampling (Peng, Gao, 2024), https://arxiv.org/abs/2407.10666; a
        direction for every step: https://arxiv.org/abs/2601.21177

    Example:
        >>> import torch
        >>> from boltzflow.generators import find_schedule
        >>> from boltzflow.networks import ShallowField
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import RotationHMC
        >>> base, target = Gaussian(2, scale=2.0).double(), DoubleWell().double()
        >>> flow = FlowPerturbation(ShallowField(2, 8), n_steps=2, name="x").double()
        >>> kernel = RotationHMC(0.3, n_rotations=2, scales={"x": 2.0})
        >>> path = perturbed_path(flow)
        >>> schedule = find_schedule(NoisyBase(base, flow), target, kernel, path=path, n=200, n_rounds=3, seed=1)
        >>> ensemble = perturbed_smc(base, flow, kernel, schedule).sample(2000, target, seed=1, batch_size=100)
        >>> abs(ensemble.log_z().z_score(target.log_z)) < 4
        True
    """
    noisy, path = NoisyBase(base, flow), perturbed_path(flow)
    last = [flow, DropNoise(flow.n_noises, name=flow.name)]
    if threshold is None:
        return annealed_importance(noisy, kernels, schedule, path=path, last=last)
    return smc(noisy, kernels, schedule, threshold=threshold, path=path, last=last)
