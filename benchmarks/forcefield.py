"""Energies and forces per second: the torch force field against a loop over one OpenMM Context, in the same run.

python benchmarks/forcefield.py [--threads 1] [--output results.json]
"""

import argparse
import functools
import os

import openmm
import torch
from _record import best_seconds, record
from openmm import app, unit

from boltzflow.forcefield import OpenMMPotential, from_openmm
from boltzflow.systems import load_system


def systems() -> dict[str, tuple[openmm.System, torch.Tensor]]:
    """Systems and structures."""
    alanine, chignolin = load_system("alanine_dipeptide"), load_system("chignolin")
    topology = app.PDBFile(str(alanine.folder / "topology.pdb")).topology
    found = {
        "alanine_dipeptide (ff96, OBC1 as CustomGBForce)": alanine.openmm_system,
        "the same molecule (ff99SB-ILDN, OBC2 as GBSAOBCForce)": app.ForceField(
            "amber99sbildn.xml", "amber99_obc.xml"
        ).createSystem(topology),
        "the same molecule (ff19SB with CMAP, GBn2 as CustomGBForce)": app.ForceField(
            "amber19-all.xml", "implicit/gbn2.xml"
        ).createSystem(topology),
        "the same molecule (ff99SB-ILDN, vacuum)": app.ForceField("amber99sbildn.xml").createSystem(topology),
    }
    found = {name: (system, alanine.positions) for name, system in found.items()}
    return found | {
        "chignolin (ff14SB, OBC1 as CustomGBForce, cutoff 2 nm)": (chignolin.openmm_system, chignolin.positions)
    }


def openmm_loop(system: openmm.System, positions: torch.Tensor, platform: str) -> float:
    """Return conformations per second of one Context on one thread, which shares a core with the thread that calls.

    On a core of its own it sleeps between calls, and to wake it takes longer than the energy of a small molecule: the
    loop is up to five times slower.
    """
    properties = {"Threads": "1"} if platform == "CPU" else {}
    arrays = list(positions.double().numpy())

    def run() -> None:
        for x in arrays:
            context.setPositions(x)
            state = context.getState(getEnergy=True, getForces=True)
            state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
            state.getForces(asNumpy=True)

    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # before the Context makes its thread, which inherits it
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName(platform), properties
    )
    try:
        return len(arrays) / best_seconds(run, repeats=3)
    finally:
        os.sched_setaffinity(0, cores)


def bridge_rates(system: openmm.System, positions: torch.Tensor) -> dict[str, float]:
    rates = {}
    for n_workers in (1, 2):
        with OpenMMPotential(system, n_workers=n_workers) as potential:
            seconds = best_seconds(lambda p=potential: p.energy_and_force(positions), repeats=5)
            rates[f"{n_workers} worker{'s'[: n_workers - 1]}, {potential.platform}"] = len(positions) / seconds
    return rates


def forward_and_backward(forcefield: torch.nn.Module, x: torch.Tensor) -> None:
    forcefield(x.clone().requires_grad_()).sum().backward()


def torch_rates(system: openmm.System, positions: torch.Tensor, device: str) -> dict[str, float]:
    rates = {}
    for dtype in (torch.float64, torch.float32):
        eager = from_openmm(system, dtype=dtype).to(device)
        compiled = eager.compiled()
        kinds = {"eager": eager} if compiled.backend == "eager" else {"eager": eager, compiled.backend: compiled}
        for kind, forcefield in kinds.items():
            for batch in (256, 1024, len(positions)):
                x = positions[:batch].to(device, dtype)
                if kind == "eager" and device == "cpu" and batch * x.shape[1] > 40_000:
                    continue
                seconds = best_seconds(lambda f=forcefield, x=x: f.energy_and_force(x), synchronise=device != "cpu")
                rates[f"{kind} {str(dtype).removeprefix('torch.')} batch {batch}"] = batch / seconds

        x = positions[:256].to(device, dtype)
        step = functools.partial(forward_and_backward, compiled, x)
        name = f"forward + backward {str(dtype).removeprefix('torch.')} batch 256"
        rates[name] = 256 / best_seconds(step, synchronise=device != "cpu")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    results = {"unit": "energies with forces per second", "device": arguments.device}
    for name, (system, minimised) in systems().items():
        rng = torch.Generator().manual_seed(0)
        positions = minimised + 0.005 * torch.randn(16384, *minimised.shape, generator=rng, dtype=torch.float64)
        loops = {}
        for platform in ("Reference", "CPU"):
            loops[platform] = openmm_loop(system, positions[:256], platform)
        rates = torch_rates(system, positions, arguments.device)
        fastest = max(loops.values())
        bridge = bridge_rates(system, positions[:256])
        results[name] = {
            "one OpenMM Context, one thread": loops,
            "OpenMMPotential, batch 256": bridge,
            "torch": rates,
            "torch over the faster OpenMM platform": {key: rate / fastest for key, rate in rates.items()},
        }
        print(f"{name}: OpenMM {fastest:.0f}/s")
        for key, rate in {**bridge, **rates}.items():
            print(f"    {key:32s} {rate:12.0f}/s   {rate / fastest:8.1f} x")
    print(record("forcefield", results, arguments.output))


if __name__ == "__main__":
    main()
