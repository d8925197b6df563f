"""NeuTra: chains in the latent coordinates of a generator, where its target is easier to sample."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import NonFiniteEnergyError
from boltzflow.io.provenance import method_names
from boltzflow.paths.pullback import PullbackTarget
from boltzflow.run import Context, Run, make_rng, new_seed
from boltzflow.simulation.parallel_tempering import Observable, ParallelTempering
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import MetropolisKernel
from boltzflow.transitions.transition import Bijection, Drop

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator

__all__ = ["NeuTra"]


class NeuTra(ParallelTempering):
    """Chains on the pull-back of a Target through a bijective Generator, by HMC in the coordinates of its base.

    They sample exp(−u(T(z)) + log|det ∂T/∂z|) exactly whatever the map T is, so that T only decides how fast: one that
    is trained makes the density close to the base's, without narrow valleys. What is recorded are the images x = T(z),
    their energies u(x), and observables of x. Modes that the map keeps apart stay apart: a ladder of `temperatures`
    or a kernel that jumps (`LearnedMove` in the coordinates of x, in plain `ParallelTempering`) joins them.

    Every force costs one force of the Target and a pass forward and back through the Generator.

    From a `NoisyBase` through `[flow, DropNoise(flow.n_noises)]` the chains move the noise of flow perturbation
    together with the latent positions, and need no determinant: the images are samples of the Target all the same.

    Args:
        generator: Bijective but for what it drops at its end, of the dtype in which chains run (float64).
        target: What is sampled, in its own coordinates.
        n_chains: Independent ladders; they start from samples of the generator.
        temperatures: As in `ParallelTempering`; u − log|det| is tempered. Only the coldest walkers can be kept.
        kernels: In latent coordinates; by default HMC of 5 leapfrog steps.
        observables: Name to a function of the State of x.
        context: Passed on to Target and Generator.
        seed: Random by default, and kept.

    Raises:
        TypeError: If the generator has a step that draws something.
        NonFiniteEnergyError: If too few samples of the generator have a finite energy to start from.

    References:
        NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport (Hoffman et al., 2019), section 3,
        https://arxiv.org/abs/1903.03704
    """

    def __init__(
        self,
        generator: "Generator",
        target: Target,
        *,
        n_chains: int,
        temperatures: Sequence[float] = (1.0,),
        kernels: Sequence[MetropolisKernel] | None = None,
        observables: Mapping[str, Observable] | None = None,
        context: Context | None = None,
        seed: int | None = None,
    ) -> None:
        if not all(isinstance(step, Bijection | Drop) for step in generator.transitions):
            raise TypeError("NeuTra: the generator has a step that is not a Bijection, so there is no pull-back.")
        self._generator, self._image_fields = generator, tuple(target.fields)
        seed = new_seed() if seed is None else seed
        pulled = PullbackTarget(target, list(generator.transitions), generator.base)
        run = Run(make_rng(seed, 1, device=generator.device), context)
        start = finite_draws(pulled, generator.base.sample(2 * n_chains, run.rng, context), n_chains, run)
        super().__init__(
            pulled,
            start,
            temperatures=temperatures,
            n_chains=n_chains,
            kernels=[HMC(0.1, n_leapfrog=5)] if kernels is None else kernels,
            observables=observables,
            context=context,
            n_relax=0,
            seed=seed,
        )
        self.ledger.merge(run.ledger)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names by which `boltzflow.cite` finds the references of what it does."""
        return tuple(method_names("NeuTra", *super().methods, self._generator))

    def _walkers(self, n_rungs: int) -> tuple[Tensor, State]:
        if n_rungs > 1:
            raise ValueError("NeuTra: keeps the coldest walkers only, because it tempers another energy than u(x).")
        u, latent = super()._walkers(n_rungs)
        run, log_det, state = self._run.at(None), torch.zeros_like(u), latent
        with torch.no_grad():
            for transition in self._generator.transitions:
                state, ratio = transition(state, run)
                log_det = log_det + ratio
        return u + log_det, State(
            {name: state[name] for name in self._image_fields},
            {name: state.spaces[name] for name in self._image_fields},
        )


def finite_draws(target: Target, drawn: State, n: int, run: Run) -> State:
    """The first n rows of finite energy, from which chains can start.

    Args:
        target: Whose energies count.
        drawn: More rows than are needed.
        n: How many are wanted.
        run: Where the evaluations are counted.

    Raises:
        NonFiniteEnergyError: If there are too few.
    """
    u, _ = run.evaluate(target, drawn)
    finite = torch.nonzero(torch.isfinite(u)).flatten()
    if len(finite) < n:
        raise NonFiniteEnergyError(
            f"Start of the chains of {target.name}: {len(finite)} of {len(u)} samples of the generator have a finite "
            f"energy, expected at least {n}. Train the generator further."
        )
    return State(dict(drawn.fields), drawn.spaces).index(finite[:n])
