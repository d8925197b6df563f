"""Where annealing on top of a trained Generator starts: its density, over samples or over latent coordinates."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.errors import CheckpointMismatchError, UnsupportedForceError
from boltzflow.generators.generator import Generator
from boltzflow.io.checkpoint import load_checkpoint
from boltzflow.io.provenance import file_sha256, method_names
from boltzflow.io.system_folders import list_systems, shipped_folder
from boltzflow.paths import EnergyPath, GeometricPath, PullbackPath, PullbackTarget
from boltzflow.paths import Path as AnnealingPath
from boltzflow.run import Context, Run
from boltzflow.state import Evaluation, State
from boltzflow.targets.target import Base, Target
from boltzflow.transitions.transition import Transition

if TYPE_CHECKING:
    from boltzflow.systems import AnalyticSystem, System

__all__ = ["GeneratorBase", "anneal_from", "checkpoint_file", "trained_base"]

Start = tuple[Base, Callable[[Target, Target], AnnealingPath], list[Transition]]


class GeneratorBase(Base):
    """The density of a bijective Generator as a base: u = −log q, log Z = 0; samples come with their energy.

    Unlike what `as_target` gives it owns the Generator, which moves to other dtypes and devices with it.

    Args:
        generator: The Generator.
        name: Shown in provenance and errors.

    Raises:
        TypeError: If a step of it is not a Bijection.

    Example:
        >>> from boltzflow.targets import Gaussian
        >>> GeneratorBase(Generator(Gaussian(2), [])).log_z
        0.0
    """

    def __init__(self, generator: Generator, *, name: str = "generator") -> None:
        density = generator.as_target()
        super().__init__(density.fields, name=name, log_z=0.0)
        self.generator, self._density = generator, (density,)
        # for those who look at the buffers of a base to see where it runs
        self.register_buffer("_like", torch.zeros((), dtype=generator.dtype, device=generator.device), persistent=False)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of the Generator."""
        return tuple(method_names(self.generator))

    def reduced_energy(self, state: State, context: Context | None = None) -> Float64[Tensor, " batch"]:
        """Minus the log-density of the samples."""
        return self._density[0].reduced_energy(state, context)

    def sample(self, n: int, rng: torch.Generator, context: Context | None = None) -> State:
        """Draw n samples of the Generator, and keep −log q of each."""
        run = Run(rng, context)
        with torch.no_grad():
            state = self.generator.base.sample(n, rng, context)
            energy = -self.generator.base.log_prob(state, context)
            for transition in self.generator.transitions:
                state, ratio = transition(state, run)
                energy = energy + ratio
        return State(state.fields, state.spaces).with_evaluation(
            self,
            Evaluation(torch.nan_to_num(energy, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf), None, context),
        )


def anneal_from(
    generator: Generator, *, latent: bool = False, start: Target | None = None, name: str = "generator"
) -> Start:
    """Base, path and last steps of an annealed sampler that starts from a trained Generator q and ends at the target p.

    Its levels are q^{1−λ} p^λ. Where the last steps of the Generator drop auxiliary variables, p is the joint density
    with these, and they are dropped after the last level. In latent coordinates the levels are the same densities,
    pulled back: kernels then move where q is the base, and every force costs a pass through the Generator and back.

    With `start`, an energy that q was trained for, as at a higher temperature, the levels lie between it and that of
    the target, and q is evaluated once, at its own samples: for targets that are easy to reach from there by moves, and
    whose forces are cheaper than those of q.

    Args:
        generator: Bijective but for last steps that drop auxiliary variables.
        latent: Whether kernels move in the coordinates of its base, in place of those of its samples.
        start: Target at λ = 0; None for q itself.
        name: Of the base, in provenance and errors.

    Returns:
        The base and `path` for `smc` or `annealed_importance`, and the Transitions that follow the last level.

    Raises:
        TypeError: If its density is not known.

    References:
        Scalable Equilibrium Sampling with Sequential Boltzmann Generators (Tan et al., 2025), section 3,
        https://arxiv.org/abs/2502.18462; there the moves are not tested, and the levels do not reach the target.

    Example:
        >>> from boltzflow.generators import smc
        >>> from boltzflow.targets import DoubleWell, Gaussian
        >>> from boltzflow.transitions import MALA, Affine
        >>> flow = Generator(Gaussian(2), [Affine(torch.zeros(2), torch.full((2,), 1.8), field="x")]).double()
        >>> base, path, last = anneal_from(flow)
        >>> annealed = smc(base, MALA(0.05), [0.5, 1.0], path=path, last=last)
        >>> ensemble = annealed.sample(400, DoubleWell(), seed=1)
    """
    joint, dropped = generator.joint()
    if not joint.is_bijective:
        stochastic = [type(t).__name__ for t in joint.transitions if not hasattr(t, "forward_with_score")]
        raise TypeError(
            f"anneal_from: the density of the Generator is not known: {', '.join(stochastic)} is in its way."
        )
    for parameter in generator.parameters():
        parameter.requires_grad_(requires_grad=False)
    last = list(generator.transitions) if latent else list(dropped)
    base = generator.base if latent else GeneratorBase(joint, name=name)
    between = GeometricPath
    if start is not None:
        between = partial(EnergyPath, start=PullbackTarget(start, last, base) if last else start)
    return base, partial(PullbackPath, through=last, path=between) if last else between, last


def checkpoint_file(base: str | Path) -> Path | None:
    """The checkpoint that a name means: a system whose flow ships, a file that ends in .pt, or a run folder.

    None for anything else. Systems come first, so that their names mean the same from every folder.
    """
    if str(base) in list_systems():
        return shipped_folder("data") / str(base) / "checkpoint.pt"
    base = Path(base)
    return base / "checkpoint.pt" if base.is_dir() else base if base.suffix == ".pt" else None


def trained_base(
    system: "System | AnalyticSystem",
    file: Path,
    *,
    sha256: str | None = None,
    latent: bool = False,
    by_energy: bool = False,
) -> Start:
    """`anneal_from` the trained Generator of a checkpoint.

    Args:
        system: What is sampled; the checkpoint must be of it, and may be of another temperature.
        file: The checkpoint.
        sha256: What the file must have; None = anything.
        latent: As in `anneal_from`.
        by_energy: Whether levels start at the energy that the Generator was trained for, which may be another analytic
            one of the same coordinates.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointMismatchError: If the file has another digest, or is of another system.
        UnsupportedForceError: If the density of its Generator is not known.
    """
    is_molecule = system.temperature is not None
    checkpoint = load_checkpoint(file, system if is_molecule or not by_energy else None)
    if sha256 not in (None, file_sha256(file)):
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: is not the checkpoint from which the pilot of this sampler started. Put "
            "that back, or run the pilot anew in another folder."
        )
    trained_for = system.trained_for(checkpoint) if by_energy else system
    if trained_for.target.fields != system.target.fields:
        raise CheckpointMismatchError(
            f"generator.annealing.base {file}: was trained for {trained_for.name}, which has other coordinates than "
            f"{system.name}."
        )
    generator = trained_for.generator_from(checkpoint, dtype=system.dtype)
    if not generator.joint()[0].is_bijective:
        raise UnsupportedForceError(
            f"generator.annealing.base {file}: is of the family {checkpoint.config.generator.family}, whose samples "
            "have no known density to anneal from; give the checkpoint of a flow without stochastic steps."
        )
    start = trained_for.target if by_energy else None
    return anneal_from(
        generator, latent=latent, start=start, name=f"{checkpoint.config.generator.family} of {checkpoint.system}"
    )
