"""Visits to the αL basin of alanine dipeptide by tempering and single chains, with and without learned moves.

python benchmarks/learned_moves.py [--seconds 20] [--output results.json]
"""

import argparse
import time

import torch
from _record import record
from parallel_tempering import phi_of

from boltzflow.simulation import LearnedMove, ParallelTempering, independent_visits, molecule_kernels, split_r_hat
from boltzflow.simulation.settings import ladder
from boltzflow.systems import load_system

N_CHAINS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="of processor time, for each of the simulations")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    system = load_system("alanine_dipeptide")
    target = system.target
    generator = system.load_generator(dtype=torch.float64)
    local = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    tempered = ladder(system.temperature, 1.8, dimension=system.dimension)
    results: dict = {"chains": N_CHAINS, "sampled temperature": system.temperature}
    simulations = {
        "tempering, all local kernels": (tempered, local),
        "tempering, and learned moves every 5 sweeps": (tempered, [*local, LearnedMove(generator, every=5)]),
        "300 K, all local kernels": (tempered[:1], local),
        "300 K, and learned moves every sweep": (tempered[:1], [*local, LearnedMove(generator)]),
        "300 K, HMC alone": (tempered[:1], local[:1]),
        "300 K, HMC and learned moves every sweep": (tempered[:1], [*local[:1], LearnedMove(generator)]),
        "300 K, learned moves alone": (tempered[:1], [LearnedMove(generator)]),
    }
    for name, (temperatures, kernels) in simulations.items():
        simulation = ParallelTempering(
            target,
            target.state(system.positions[None]),
            temperatures=temperatures,
            n_chains=N_CHAINS,
            kernels=kernels,
            observables={"alpha_L": phi_of(system)},
            seed=1,
        )
        simulation.burn_in(200)
        began = time.process_time()
        simulation.run(20)
        n_sweeps = max(100, int(20 * arguments.seconds / (time.process_time() - began)))
        spent = simulation.ledger.n_force()
        began = time.process_time()
        result = simulation.run(n_sweeps, records_per_frame=n_sweeps)
        seconds = time.process_time() - began
        spent = simulation.ledger.n_force() - spent
        inside = result.observables["alpha_L"] > 0
        visits = independent_visits(inside)
        effective = result.diagnostics["series"]["reduced_energy"]["n_effective"]
        learned = any(isinstance(kernel, LearnedMove) for kernel in kernels)
        results[name] = {
            "sweeps": n_sweeps,
            "processor seconds": seconds,
            "evaluations of energy and force": spent,
            "probability of alpha_L": float(inside.double().mean()),
            "independent visits": visits,
            "visits per 1e6 force evaluations": 1e6 * visits / spent,
            "visits per processor second": visits / seconds,
            # without a visit there is no R-hat
            "R-hat of alpha_L": split_r_hat(inside.double()) if bool(inside.any()) else None,
            "effective energies per 1e6 force evaluations": 1e6 * effective / spent,
            "effective energies per processor second": effective / seconds,
            "acceptance of learned moves": result.diagnostics["acceptance"][-1][0] if learned else None,
            "round trips": result.diagnostics["round_trips"],
        }
        print(
            f"{name:44s} αL {visits:8.1f} {1e6 * visits / spent:8.1f} per 1e6 forces {visits / seconds:6.2f}/s"
            f"  energies {1e6 * effective / spent:8.0f} per 1e6 forces {effective / seconds:6.0f}/s"
        )
    print(record("learned_moves", results, arguments.output))


if __name__ == "__main__":
    main()
