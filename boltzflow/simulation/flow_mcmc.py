"""Ensembles by chains that use a generator: flow-MCMC, which alternates local and learned moves, and NeuTra."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from boltzflow.ensemble import Ensemble
from boltzflow.run import Context, Run, make_rng, new_seed
from boltzflow.simulation.flow_training import FlowTraining
from boltzflow.simulation.frames import Frames
from boltzflow.simulation.isir import ISIR
from boltzflow.simulation.learned_move import LearnedMove
from boltzflow.simulation.neutra import NeuTra, finite_draws
from boltzflow.simulation.parallel_tempering import ParallelTempering
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.transitions.hmc import HMC
from boltzflow.transitions.metropolis import MetropolisKernel

if TYPE_CHECKING:
    from boltzflow.generators.generator import Generator

__all__ = ["flow_mcmc", "neutra"]


def flow_mcmc(
    generator: "Generator",
    target: Target,
    *,
    n: int = 20_000,
    n_chains: int = 32,
    burn_in: int = 500,
    stride: int = 1,
    n_proposals: int | None = None,
    every: int = 1,
    training: FlowTraining | None = None,
    kernels: Sequence[MetropolisKernel] | None = None,
    temperatures: Sequence[float] = (1.0,),
    start: State | None = None,
    context: Context | None = None,
    seed: int | None = None,
) -> Ensemble:
    """Sample a target by chains of local steps in turn with moves that a generator proposes.

    Exact whatever the generator is worth. With `training` it learns from the chains during the burn-in: the local steps
    find where the density is, the generator learns to jump there. It is frozen after `training.until` of the burn-in,
    step sizes and masses are at its end, and only frames after that are kept, so that all of them come from one fixed
    kernel. A mode that neither start, nor local steps, nor generator know of is not found: spread the start, or give
    `temperatures`.

    Args:
        generator: Bijective, in the dtype of the chains (float64). Trained in place with `training`.
        target: What is sampled.
        n: Frames, over all chains.
        n_chains: Independent chains, or ladders.
        burn_in: Sweeps that are left out.
        stride: Sweeps between frames; a sweep applies every kernel once.
        n_proposals: None = one proposal with Metropolis' rule (`LearnedMove`); otherwise that many by `ISIR`.
        every: Sweeps between learned moves.
        training: How the generator learns in the burn-in; None = not at all.
        kernels: Local ones; by default HMC of 5 leapfrog steps, with adapted masses. For molecules take
            `molecule_kernels`.
        temperatures: Rising, the target's first; only ratios matter.
        start: As in `ParallelTempering`; by default samples of the generator.
        context: Passed on to target and generator.
        seed: Random by default, and recorded.

    Returns:
        Frames with equal weights and their chains; R-hat and effective numbers, acceptance by kernel and rung, step
        sizes are in `provenance.extra["simulation"]`.

    Raises:
        NonFiniteEnergyError: If too few samples of the generator have a finite energy to start from.
        TypeError: If the generator has a step that is not a Bijection.

    References:
        Gabrié, Rotskoff, Vanden-Eijnden, PNAS 119, e2109420119 (2022), algorithm 1; On Sampling with Approximate
        Transport Maps (Grenioux et al., 2023), https://arxiv.org/abs/2302.04763

    Example:
        >>> import torch
        >>> from boltzflow.generators import Generator
        >>> from boltzflow.targets import Funnel, Gaussian
        >>> from boltzflow.transitions import Affine
        >>> flow = Generator(Gaussian(2).double(), [Affine(torch.zeros(2), torch.ones(2), field="x").double()])
        >>> ensemble = flow_mcmc(flow, Funnel(2, variance=1.0).double(), n=80, n_chains=4, burn_in=20, seed=1)
        >>> len(ensemble), ensemble.chain.max()
        (80, np.int64(3))
    """
    seed = new_seed() if seed is None else seed
    proposals: dict[str, Any] = {} if n_proposals is None else {"n_proposals": n_proposals}
    learned = (LearnedMove if n_proposals is None else ISIR)(generator, every=every, training=training, **proposals)
    run = Run(make_rng(seed, 1, device=generator.device), context)
    if start is None:
        start = finite_draws(target, _draws(generator, 2 * n_chains, run), n_chains, run)
    local = [HMC(0.1, n_leapfrog=5)] if kernels is None else kernels
    simulation = ParallelTempering(
        target,
        start,
        temperatures=temperatures,
        n_chains=n_chains,
        kernels=[*local, learned],
        context=context,
        n_relax=0,
        seed=seed,
    )
    simulation.ledger.merge(run.ledger)
    simulation.burn_in(burn_in, masses=kernels is None)
    generator.load_state_dict(simulation.kernels[-1].generator.state_dict())
    return _recorded(simulation, target, "flow-mcmc", n=n, stride=stride, dtype=generator.dtype)


def neutra(
    generator: "Generator",
    target: Target,
    *,
    n: int = 20_000,
    n_chains: int = 32,
    burn_in: int = 500,
    stride: int = 1,
    kernels: Sequence[MetropolisKernel] | None = None,
    temperatures: Sequence[float] = (1.0,),
    context: Context | None = None,
    seed: int | None = None,
) -> Ensemble:
    """Sample a target by HMC in the latent coordinates of a generator; see `NeuTra`.

    Args:
        generator: Bijective, in the dtype of the chains (float64).
        target: What is sampled.
        n: Frames, over all chains.
        n_chains: Independent chains, or ladders; they start from samples of the generator.
        burn_in: Sweeps that are left out; step sizes and masses are adapted in them, and frozen.
        stride: Sweeps between frames.
        kernels: In latent coordinates; by default HMC of 5 leapfrog steps.
        temperatures: Rising; only ratios matter.
        context: Passed on to target and generator.
        seed: Random by default, and recorded.

    Returns:
        Frames in the coordinates of the target with equal weights, as `flow_mcmc` returns them.

    Raises:
        NonFiniteEnergyError: If too few samples of the generator have a finite energy to start from.
        TypeError: If the generator has a step that is not a Bijection.

    References:
        NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport (Hoffman et al., 2019),
        https://arxiv.org/abs/1903.03704
    """
    simulation = NeuTra(
        generator,
        target,
        n_chains=n_chains,
        temperatures=temperatures,
        kernels=kernels,
        context=context,
        seed=seed,
    )
    simulation.burn_in(burn_in, masses=kernels is None)
    return _recorded(simulation, target, "neutra", n=n, stride=stride, dtype=generator.dtype)


def _draws(generator: "Generator", n: int, run: Run) -> State:
    """Samples of a generator without their weights."""
    state = generator.base.sample(n, run.rng, run.context)
    for transition in generator.transitions:
        state, _ = transition(state, run)
    return state.detach()


def _recorded(
    simulation: ParallelTempering, target: Target, method: str, *, n: int, stride: int, dtype: Any
) -> Ensemble:
    """Sample with what is frozen, and collect the frames."""
    n_records = math.ceil(n / simulation.n_chains)
    result = simulation.run(n_records, sweeps_per_record=stride)
    frames = Frames(target, topology=getattr(target, "topology", None), dtype=str(dtype).removeprefix("torch."))
    frames.add(result)
    return frames.ensemble(
        method=method,
        seed=simulation.seed,
        wanted=n_records * simulation.n_chains,
        diagnostics=result.diagnostics,
        ledger=result.ledger,
        seconds=result.seconds,
        methods=simulation.methods,
    )
