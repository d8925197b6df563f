"""Force evaluations per second and thread of batched parallel tempering, against looping one OpenMM Context.

python benchmarks/parallel_tempering.py [--threads 1] [--output results.json]
"""

import argparse
import math
import os
import time
from collections.abc import Callable

import openmm
import torch
from _record import record

from boltzflow.simulation import ParallelTempering, independent_visits, molecule_kernels
from boltzflow.simulation.molecular_dynamics import molecular_dynamics
from boltzflow.systems import System, load_system

TEMPERATURES = [300.0, 400.0, 540.0]


def openmm_rates(system: System, positions: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return energies with forces per second on one thread: one Context set to one conformation after the other.

    Its thread shares a core with the caller: to wake it on another takes longer than the energy.
    """
    rates = {}
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    for platform in ("Reference", "CPU"):
        properties = {"Threads": "1"} if platform == "CPU" else {}
        context = openmm.Context(
            system.openmm_system,
            openmm.VerletIntegrator(0.001),
            openmm.Platform.getPlatformByName(platform),
            properties,
        )

        def loop(context: openmm.Context = context) -> int:
            for x in positions.numpy():
                context.setPositions(x)
                context.getState(getEnergy=True, getForces=True)
            return len(positions)

        rates[platform] = best_rate(loop, repeats=3)
    os.sched_setaffinity(0, cores)
    return rates


def best_rate(work: Callable[[], int], *, repeats: int) -> dict[str, float]:
    """Return the best count per second over repeats, by the wall clock and by the processor time of this process."""
    work()
    wall, cpu = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        n = work()
        wall.append(n / (time.perf_counter() - began))
        cpu.append(n / (time.process_time() - used))
    return {"per second": max(wall), "per processor second": max(cpu)}


def phi_of(system: System) -> Callable[[object], torch.Tensor]:
    """Return an observable: 1 where 0° < φ < 130°."""
    index = {(a.residue.name, a.name): a.index for a in system.topology.atoms}
    atoms = [index["ACE", "C"], index["ALA", "N"], index["ALA", "CA"], index["ALA", "C"]]

    def inside(state: object) -> torch.Tensor:
        a, b, c, d = (state["positions"][:, k] for k in atoms)
        n1, n2 = torch.linalg.cross(b - a, c - b), torch.linalg.cross(c - b, d - c)
        sine = (torch.linalg.cross(n1, n2) * (c - b)).sum(-1) / (c - b).norm(dim=-1)
        phi = torch.atan2(sine, (n1 * n2).sum(-1))
        return (phi > 0) & (phi < math.radians(130))

    return inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sweeps", type=int, default=400, help="for the visits of the rare basin")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    system = load_system("alanine_dipeptide")
    target = system.target
    start = target.state(system.positions[None])

    results: dict = {"unit": "energies with forces per second", "temperatures": TEMPERATURES}
    for n_chains in (16, 64, 256, 1024):
        simulation = ParallelTempering(
            target,
            start,
            temperatures=TEMPERATURES,
            n_chains=n_chains,
            kernels=molecule_kernels(system.bonds, system.elements),
            observables={"alpha_L": phi_of(system)},
            seed=1,
        )
        simulation.burn_in(60)
        n_sweeps = max(2, 4096 // n_chains)

        def run(simulation: ParallelTempering = simulation, n_sweeps: int = n_sweeps) -> int:
            before = simulation.ledger.n_force()
            simulation.run(n_sweeps, records_per_frame=n_sweeps)
            return simulation.ledger.n_force() - before

        results[f"parallel tempering, {3 * n_chains} rows"] = best_rate(run, repeats=3)
        if n_chains == 256:
            before = simulation.ledger.n_force()
            result = simulation.run(arguments.sweeps, records_per_frame=arguments.sweeps)
            inside = result.observables["alpha_L"] > 0
            visits = independent_visits(inside)
            results["alpha_L"] = {
                "probability": float(inside.double().mean()),
                "independent visits": visits,
                "visits per 1e6 force evaluations": 1e6 * visits / (simulation.ledger.n_force() - before),
                "seconds": result.seconds,
            }
    frames = molecular_dynamics(
        system.openmm_system,
        system.positions,
        temperature=300.0,
        n_frames=256,
        stride=5,
        n_equilibration=500,
        seed=1,
        platform="CPU",
    )
    loops = openmm_rates(system, frames.samples["positions"][:, 0])
    results["one OpenMM Context, one thread"] = loops
    fastest = {unit: max(rate[unit] for rate in loops.values()) for unit in ("per second", "per processor second")}
    ratios = {
        name: {
            "wall clock, per thread": rate["per second"] / arguments.threads / fastest["per second"],
            "processor time": rate["per processor second"] / fastest["per processor second"],
        }
        for name, rate in results.items()
        if name.startswith("parallel tempering")
    }
    results["over the faster OpenMM platform"] = ratios
    print(f"one OpenMM Context: {fastest['per second']:.0f}/s")
    for name, ratio in ratios.items():
        print(f"{name:32s} {results[name]['per second']:10.0f}/s  {ratio['wall clock, per thread']:8.1f} x per thread")
    print(results["alpha_L"])
    print(record("parallel_tempering", results, arguments.output))


if __name__ == "__main__":
    main()
