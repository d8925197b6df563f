"""Visits to the αL basin of alanine dipeptide by tempering and single chains, with and without a generator.

Learned moves by Metropolis' rule and by i-SIR, HMC in the latent coordinates of the shipped flow (NeuTra), and
flow-MCMC whose flow starts untrained and learns from the chains in the burn-in.

python benchmarks/learned_moves.py [--seconds 20] [--output results.json]
"""

import argparse
import time

import torch
from _record import record
from parallel_tempering import phi_of

from boltzflow.generators.families import build_generator
from boltzflow.simulation import (
    ISIR,
    FlowTraining,
    LearnedKernel,
    LearnedMove,
    NeuTra,
    ParallelTempering,
    independent_visits,
    molecule_kernels,
    split_r_hat,
)
from boltzflow.simulation.settings import ladder
from boltzflow.systems import load_system

N_CHAINS = 64
BURN_IN = 200


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
    untrained = build_generator(system, system.recipe().generator, dtype=torch.float64)
    simulations = {
        "tempering, all local kernels": (tempered, local),
        "tempering, and learned moves every 5 sweeps": (tempered, [*local, LearnedMove(generator, every=5)]),
        "300 K, all local kernels": (tempered[:1], local),
        "300 K, and learned moves every sweep": (tempered[:1], [*local, LearnedMove(generator)]),
        "300 K, and i-SIR of 4 every sweep": (tempered[:1], [*local, ISIR(generator, n_proposals=4)]),
        "300 K, flow-MCMC from an untrained flow": (
            tempered[:1],
            [*local, LearnedMove(untrained, training=FlowTraining())],
        ),
        "300 K, HMC alone": (tempered[:1], local[:1]),
        "300 K, HMC and learned moves every sweep": (tempered[:1], [*local[:1], LearnedMove(generator)]),
        "300 K, learned moves alone": (tempered[:1], [LearnedMove(generator)]),
        "300 K, i-SIR of 4 alone": (tempered[:1], [ISIR(generator, n_proposals=4)]),
        "300 K, HMC in latent coordinates": (tempered[:1], None),
    }
    for name, (temperatures, kernels) in simulations.items():
        options = {"temperatures": temperatures, "n_chains": N_CHAINS, "seed": 1}
        options["observables"] = {"alpha_L": phi_of(system)}
        if kernels is None:
            simulation = NeuTra(generator, target, **options)
        else:
            simulation = ParallelTempering(target, target.state(system.positions[None]), kernels=kernels, **options)
        began = time.process_time()
        simulation.burn_in(BURN_IN)
        burnt = time.process_time() - began
        began = time.process_time()
        simulation.run(20)
        n_sweeps = max(100, int(20 * arguments.seconds / (time.process_time() - began)))
        spent = simulation.ledger.n_energy()  # a force counts an energy, too
        began = time.process_time()
        result = simulation.run(n_sweeps, records_per_frame=n_sweeps)
        seconds = time.process_time() - began
        spent = simulation.ledger.n_energy() - spent
        inside = result.observables["alpha_L"] > 0
        visits = independent_visits(inside)
        effective = result.diagnostics["series"]["reduced_energy"]["n_effective"]
        learned = isinstance(simulation.kernels[-1], LearnedKernel)
        results[name] = {
            "sweeps": n_sweeps,
            "processor seconds": seconds,
            "processor seconds of the burn-in": burnt,
            "evaluations of the energy, most with force": spent,
            "probability of alpha_L": float(inside.double().mean()),
            "independent visits": visits,
            "visits per 1e6 evaluations": 1e6 * visits / spent,
            "visits per processor second": visits / seconds,
            # without a visit there is no R-hat
            "R-hat of alpha_L": split_r_hat(inside.double()) if bool(inside.any()) else None,
            "effective energies per 1e6 evaluations": 1e6 * effective / spent,
            "effective energies per processor second": effective / seconds,
            "acceptance of learned moves": result.diagnostics["acceptance"][-1][0] if learned else None,
            "round trips": result.diagnostics["round_trips"],
        }
        print(
            f"{name:44s} αL {visits:8.1f} {1e6 * visits / spent:8.1f} per 1e6 evaluations {visits / seconds:6.2f}/s"
            f"  energies {1e6 * effective / spent:8.0f} per 1e6 evaluations {effective / seconds:6.0f}/s"
        )
    print(record("learned_moves", results, arguments.output))


if __name__ == "__main__":
    main()
