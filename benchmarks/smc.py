"""Sequential Monte Carlo on many-well-32 and the 40-component mixture, against exact values and parallel tempering.

python benchmarks/smc.py [--threads 1] [--output results.json]

Every target call counts: the pilot of the schedule, and the burn-in of parallel tempering. The cost per effective
sample is for the weights of the modes: calls times the variance of their estimate over that of one exact sample.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from _record import record

from boltzflow.generators import find_schedule, smc
from boltzflow.run import make_rng
from boltzflow.simulation import ParallelTempering
from boltzflow.state import State
from boltzflow.statistics import Groups, expectation
from boltzflow.targets import Gaussian, ManyWell, Target, gmm40
from boltzflow.targets.target import Base
from boltzflow.transitions import HMC


@dataclass(frozen=True)
class Case:
    """A target with its base, modes of known weight, and the settings of both samplers."""

    target: Target
    base: Base
    modes: np.ndarray
    kernel: HMC
    cess: float
    population: int
    n_populations: int
    temperatures: list[float]
    chains: int
    burn_in: int
    sweeps: int
    stride: int

    def inside(self, state: State) -> np.ndarray:
        """Part that every mode has in every row, shape (n_modes, n); its mean is the exact weight of the mode."""
        if isinstance(self.target, ManyWell):
            return (state["x"][:, ::2] > 0).double().T.numpy()
        return self.target.responsibilities(state).T.numpy()


def cases() -> dict[str, Case]:
    """The two targets."""
    wells, mixture = ManyWell(32).double(), gmm40().double()
    right = 1 - wells.well.below(0.0)
    return {
        "many_well_32": Case(
            wells, Gaussian(32).double(), np.full(16, right), HMC(0.2, n_leapfrog=2, n_steps=2), 0.99, 4000, 65,
            np.geomspace(1.0, 8.0, 10).tolist(), 100, 500, 4000, 4,
        ),
        "gmm40": Case(
            mixture, Gaussian(2, scale=25.0).double(), np.full(40, 1 / 40), HMC(1.0, n_leapfrog=4), 0.9, 2000, 60,
            np.geomspace(1.0, 200.0, 8).tolist(), 100, 500, 2000, 4,
        ),
    }  # fmt: skip


def modes_of(case: Case, found: list, calls: int) -> dict[str, float]:
    """Z-scores of the mode weights, and the calls per effective sample of them."""
    z = np.array([f.z_score(w) for f, w in zip(found, case.modes, strict=True)])
    # of one exact sample the variance is w (1 - w)
    effective = [w * (1 - w) / f.error**2 for f, w in zip(found, case.modes, strict=True)]
    return {
        "modes": len(z),
        "modes found": int(sum(f.value > 0 for f in found)),
        "largest |z| of a mode weight": float(np.abs(z).max()),
        "mean z^2 of the mode weights": float(np.mean(z**2)),
        "largest error of a mode weight": max(f.error for f in found),
        "effective samples of a mode weight, median": float(np.median(effective)),
        "calls per effective sample": calls / float(np.median(effective)),
    }


def annealed(case: Case) -> dict[str, float]:
    """Sequential Monte Carlo with a frozen schedule."""
    began = time.perf_counter()
    schedule = find_schedule(case.base, case.target, case.kernel, cess=case.cess, seed=1)
    ensemble = smc(case.base, case.kernel, schedule).sample(
        case.population * case.n_populations, case.target, seed=2, batch_size=case.population
    )
    seconds = time.perf_counter() - began
    log_z, pilot = ensemble.log_z(), schedule.ledger.n_energy()
    calls = pilot + ensemble.provenance.n_energy
    inside = case.inside(ensemble.to_state())
    families = ensemble.provenance.extra["populations"]
    return {
        "levels": len(schedule),
        "population": case.population,
        "populations": case.n_populations,
        "log Z": log_z.value,
        "log Z error": log_z.error,
        "exact log Z": case.target.log_z,
        "log Z minus exact": log_z.value - case.target.log_z,
        "log Z z-score": log_z.z_score(case.target.log_z),
        "Kish ESS fraction": ensemble.ess_fraction(),
        "k-hat": ensemble.pareto_k(),
        "rho_t, mean": float(np.mean([f["rho_t"] for f in families])),
        "target calls of the pilot": pilot,
        "target calls": calls,
        "force calls": schedule.ledger.n_force() + ensemble.provenance.n_force,
        "seconds": seconds,
        **modes_of(case, [ensemble.expectation(row) for row in inside], calls),
    }


def tempered(case: Case) -> dict[str, float]:
    """Plain parallel tempering with the same kernel, started from the base of the other."""
    began = time.perf_counter()
    start = case.base.sample(case.chains, make_rng(3))
    simulation = ParallelTempering(
        case.target,
        start,
        temperatures=case.temperatures,
        n_chains=case.chains,
        kernels=[case.kernel],
        seed=4,
    )
    simulation.burn_in(case.burn_in)
    result = simulation.run(case.sweeps // case.stride, sweeps_per_record=case.stride)
    seconds = time.perf_counter() - began
    x = result.samples["x"]
    frames, chains = x.shape[:2]
    inside = case.inside(case.target.state(x.reshape(frames * chains, -1)))
    groups = Groups.of_chains(np.tile(np.arange(chains), frames), np.repeat(np.arange(frames), chains))
    calls = simulation.ledger.n_energy()
    return {
        "temperatures": case.temperatures,
        "swap rates": result.diagnostics["swap_rates"],
        "chains": case.chains,
        "sweeps": case.sweeps,
        "target calls": calls,
        "force calls": simulation.ledger.n_force(),
        "seconds": seconds,
        **modes_of(case, [expectation(row, groups=groups) for row in inside], calls),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = {}
    for name, case in cases().items():
        results[name] = {"smc": annealed(case), "parallel tempering": tempered(case)}
        for method, found in results[name].items():
            print(name, method)
            for key, value in found.items():
                print(f"  {key}: {value}")
    print(record("smc", results, arguments.output))


if __name__ == "__main__":
    main()
