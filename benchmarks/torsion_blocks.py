"""Effective samples per hour of parallel tempering of peptides, with and without torsion-block flows.

python benchmarks/torsion_blocks.py [--work FOLDER] [--scale 1.0] [--output results.json]

Both simulations of a peptide start from the same walkers and make the same number of sweeps and of force calls; five
uniform rotations per sweep are replaced by five blocks. What is finished is kept in the work folder, and is not done
again.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import torch
from _record import record

from boltzflow.coordinates import rmsd
from boltzflow.coordinates.dihedral import dihedral_angles
from boltzflow.run import Run, make_rng
from boltzflow.simulation import ParallelTempering, TemperedRows, molecule_blocks, molecule_kernels
from boltzflow.simulation.settings import ladder
from boltzflow.statistics import effective_samples
from boltzflow.systems import System, load_system
from boltzflow.training import fit_torsion_density
from boltzflow.transitions import FAMILIES, TorsionBlockFlow, TorsionBlocks, TorsionDensity, TorsionMove

# ladders, sweeps of the simulation that is trained on (a quarter of them burn-in) and of the simulations compared, and
# how often those are repeated with other seeds
SYSTEMS = {"trp_cage": (4, 400, 700, 2), "ace_aaa_nme": (16, 300, 1200, 1), "chignolin": (8, 300, 500, 1)}
BURN_IN = 60
USED = ("side", "pivot")


class Clock:
    """Processor time of what ran inside."""

    def __enter__(self) -> "Clock":
        """Start."""
        self.began = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.seconds = time.process_time() - self.began


def stage(folder: Path, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` returns, or returned the last time."""
    path = folder / f"{name}.pt"
    if not path.is_file():
        found = work()
        torch.save(found, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    return torch.load(path, weights_only=False)


def tempering(system: System, start: torch.Tensor, kernels: list, chains: int, seed: int, n_relax: int) -> Any:
    """Parallel tempering of the peptide from given walkers."""
    return ParallelTempering(
        system.target,
        system.target.state(start),
        temperatures=ladder(system.temperature, 1.8, dimension=system.dimension),
        n_chains=chains,
        kernels=kernels,
        n_relax=n_relax,
        seed=seed,
    )


def prepare(system: System, blocks: TorsionBlocks, chains: int, sweeps: int) -> dict[str, Any]:
    """A short simulation with the local kernels, and the density trained on the frames of all its temperatures."""
    local = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    with Clock() as simulated:
        simulation = tempering(system, system.positions[None], local, chains, seed=1, n_relax=100)
        simulation.burn_in(sweeps // 4)
        result = simulation.run((sweeps - sweeps // 4) // 5, sweeps_per_record=5, keep="all")
    frames = result.samples["positions"]
    shuffled = frames.flatten(0, 1)[torch.randperm(frames[..., 0, 0].numel(), generator=make_rng(2))]
    with Clock() as trained:
        fit = fit_torsion_density(blocks, shuffled, rng=make_rng(3), steps=1500)
    return {
        "density": fit.density,
        "walkers": frames[-1],
        "forces": simulation.ledger.n_force(),
        "seconds simulated": simulated.seconds,
        "seconds trained": trained.seconds,
        "nats": (fit.held_out, fit.uniform),
    }


def sample(system: System, kernels: list, walkers: torch.Tensor, chains: int, sweeps: int, seed: int) -> dict[str, Any]:
    """Cold frames of every sweep, and what they cost."""
    simulation = tempering(system, walkers, kernels, chains, seed, n_relax=0)
    with Clock() as settled:
        simulation.burn_in(BURN_IN)
    spent = simulation.ledger.n_force()
    with Clock() as clock:
        result = simulation.run(sweeps)
    return {
        "positions": result.samples["positions"].float(),
        "energy": result.reduced_energies,
        "seconds": clock.seconds,
        "seconds of burn-in": settled.seconds,
        "forces": simulation.ledger.n_force() - spent,
        "acceptance": [rungs[0] for rungs in result.diagnostics["acceptance"]],
        "swap rate": float(np.mean(result.diagnostics["swap_rates"])),
        "round trips": result.diagnostics["round_trips"],
    }


def joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Repetitions as one simulation with more ladders."""
    found = {name: sum(part[name] for part in parts) for name in ("seconds", "seconds of burn-in", "forces")}
    found |= {name: torch.cat([part[name] for part in parts], dim=1) for name in ("positions", "energy")}
    found["round trips"] = sum(part["round trips"] for part in parts)
    for name in ("acceptance", "swap rate"):
        found[name] = np.mean([np.asarray(part[name]) for part in parts], axis=0).tolist()
    return found


def observables(system: System, found: dict[str, Any]) -> dict[str, np.ndarray]:
    """Series by name, (n_frames, n_chains): rotamers of φ, ψ and χ1 as 0 or 1, radius of gyration, RMSD, energy."""
    x = found["positions"].double()
    shape, flat, structure = x.shape[:2], x.flatten(0, 1), system._structure
    series = {"reduced energy": found["energy"].numpy()}
    ca = torch.tensor([a.index for a in system.topology.atoms if a.name in ("CA", "CH3")])
    masses = torch.tensor([a.element.mass for a in system.topology.atoms], dtype=torch.float64)
    centre = (flat * masses[:, None]).sum(1, keepdim=True) / masses.sum()
    gyration = (((flat - centre) ** 2).sum(2) * masses).sum(1) / masses.sum()
    series["radius of gyration"] = gyration.sqrt().unflatten(0, shape).numpy()
    series["RMSD to the start"] = rmsd(flat[:, ca], system.positions[ca]).unflatten(0, shape).numpy()
    for name, compute in (("phi", mdtraj.compute_phi), ("psi", mdtraj.compute_psi), ("chi1", mdtraj.compute_chi1)):
        quads = compute(structure)[0]
        if not len(quads):
            continue
        degrees = torch.rad2deg(dihedral_angles(flat, torch.as_tensor(quads.astype(np.int64))))
        inside = {"phi": degrees > 0, "psi": (degrees > -120) & (degrees < 50), "chi1": degrees.abs() > 120}[name]
        for k, column in enumerate(inside.double().unflatten(0, shape).unbind(2)):
            series[f"{name} {system.topology.atom(int(quads[k][1])).residue}"] = column.numpy()
    return series


def group(name: str) -> str:
    """What an observable is an example of."""
    return {"phi": "phi, psi", "psi": "phi, psi", "chi1": "chi1"}.get(name.split()[0], name)


def mean_log(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(float(np.mean(np.log(values))))


def compare(plain: dict[str, Any], flow: dict[str, Any], series: list[dict[str, np.ndarray]]) -> dict[str, Any]:
    """Effective samples per processor hour of both simulations by group, and their ratio."""
    moved = {n: [float(np.ptp(s[n])) > 0 for s in series] for n in series[0]}
    hours = [found["seconds"] / 3600 for found in (plain, flow)]
    rows: dict[str, Any] = {}
    for name in dict.fromkeys(group(n) for n in series[0]):
        members = [n for n in series[0] if group(n) == name]
        both = [n for n in members if all(moved[n])]
        row: dict[str, Any] = {
            "observables": len(members),
            "changed, without and with blocks": [sum(moved[n][k] for n in members) for k in (0, 1)],
        }
        if both:
            found = [[effective_samples(list(s[n].T)) for n in both] for s in series]
            row["effective samples per hour"] = [mean_log(f) / h for f, h in zip(found, hours, strict=True)]
            row["ratio"] = mean_log(found[1]) / mean_log(found[0]) * hours[0] / hours[1]
            row["ratio per force call"] = mean_log(found[1]) / mean_log(found[0]) * plain["forces"] / flow["forces"]
            row["ratio, error"] = jackknife(series, both) * row["ratio"]
        rows[name] = row
    return rows


def jackknife(series: list[dict[str, np.ndarray]], names: list[str]) -> float:
    """Standard error of the logarithm of the ratio, from leaving out one ladder of each simulation at a time."""
    variance = 0.0
    for s in series:
        n = s[names[0]].shape[1]
        logs = []
        for left_out in range(n):
            kept = [np.delete(s[name], left_out, axis=1) for name in names]
            logs.append(float(np.mean([np.log(effective_samples(list(k.T)) / (n - 1)) for k in kept])))
        variance += (n - 1) / n * float(np.sum((np.array(logs) - np.mean(logs)) ** 2))
    return math.sqrt(variance)


def agreement(series: list[dict[str, np.ndarray]]) -> dict[str, float]:
    """Whether both simulations have the same means, with errors between ladders."""
    z = []
    for name in series[0]:
        means = [s[name].mean(0) for s in series]
        error = math.sqrt(sum(m.var(ddof=1) / len(m) for m in means))
        if error > 0:
            z.append((means[0].mean() - means[1].mean()) / error)
    return {"observables": len(z), "largest |z|": float(max(np.abs(z))), "mean z^2": float(np.mean(np.square(z)))}


def families(system: System, blocks: TorsionBlocks, density: TorsionDensity, frames: torch.Tensor) -> dict[str, Any]:
    """Acceptance and how far one trial turns, at the system's temperature, of every family and of single axes."""
    run = Run(make_rng(5), level=TemperedRows(system.target, torch.ones(len(frames), dtype=torch.float64)))
    _, _, state = run.energy_and_force(system.target.state(frames))
    before = blocks.torsions(frames)
    uniform = TorsionDensity.of(blocks).double().requires_grad_(False)  # noqa: FBT003
    kernels: dict[str, Any] = {}
    for family in FAMILIES:
        if any(label.startswith(family) for label in blocks.labels):
            chosen = blocks.select([family])
            kernels[f"{family}, learned"] = TorsionBlockFlow(chosen, density)
            kernels[f"{family}, uniform"] = TorsionBlockFlow(chosen, uniform)
    local = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    kernels["one axis, uniform"] = next(k for k in local if isinstance(k, TorsionMove))
    rows = {}
    for name, kernel in kernels.items():
        accepted, turned, flipped, n = 0.0, 0.0, 0.0, 0
        for _ in range(math.ceil(800 / len(frames))):
            trial, odds = kernel.propose(state, run)
            p = torch.nan_to_num(odds, nan=-torch.inf).clamp(max=0).exp()
            change = 1 - (blocks.torsions(trial["positions"]) - before).cos()
            accepted, turned, n = accepted + float(p.sum()), turned + float(p @ change.sum(1)), n + len(p)
            flipped += float(p @ (change > 0.5).any(1).double())
        rows[name] = {"trials": n, "acceptance": accepted / n, "turned by more than 60 degrees": flipped / n}
        rows[name]["mean of 1 - cos"] = turned / n
    return rows


def measure(name: str, chains: int, training: int, sweeps: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Everything about one peptide."""
    system = load_system(name)
    blocks = molecule_blocks(system.bonds, system.elements, positions=system.positions, families=FAMILIES)
    prepared = stage(folder, f"{name}-prepared", lambda: prepare(system, blocks, chains, training))
    local = molecule_kernels(system.bonds, system.elements, positions=system.positions)
    used = blocks.select(USED)
    hmc, soft, general = local
    learned = [hmc, TorsionBlockFlow(used, prepared["density"], n_steps=soft.n_steps), general]
    simulations = []
    for k, (label, kernels) in enumerate((("plain", local), ("blocks", learned))):
        parts = [
            stage(
                folder,
                f"{name}-{label}-{repeat}",
                lambda kernels=kernels, seed=100 * repeat + 10 + k: sample(
                    system, kernels, prepared["walkers"], chains, sweeps, seed
                ),
            )
            for repeat in range(repeats)
        ]
        simulations.append(joined(parts))
    plain, flow = simulations
    series = [observables(system, found) for found in (plain, flow)]
    cold = plain["positions"][:: max(1, sweeps // 50)].flatten(0, 1).double()
    tried = stage(folder, f"{name}-families", lambda: families(system, blocks, prepared["density"], cold))
    rows = compare(plain, flow, series)
    cost = prepared["seconds simulated"] + prepared["seconds trained"]
    for row in rows.values():
        if row.get("ratio", 0) > 1:
            row["pays after hours"] = cost / 3600 * row["ratio"] / (row["ratio"] - 1)
    scalars = ("seconds", "seconds of burn-in", "forces", "acceptance", "swap rate", "round trips")
    return {
        "atoms": system.n_atoms,
        "ladders": repeats * chains,
        "temperatures": len(ladder(system.temperature, 1.8, dimension=system.dimension)),
        "sweeps": sweeps,
        "blocks": len(used),
        "training": {k: prepared[k] for k in ("forces", "seconds simulated", "seconds trained", "nats")},
        "without blocks": {k: plain[k] for k in scalars},
        "with blocks": {k: flow[k] for k in scalars},
        "groups": rows,
        "agreement": agreement(series),
        "families": tried,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("torsion_blocks_work"), help="keeps what is finished")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on all numbers of sweeps")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in arguments.systems:
        chains, training, sweeps, repeats = SYSTEMS[name]
        training, sweeps = round(arguments.scale * training), round(arguments.scale * sweeps)
        results[name] = measure(name, chains, training, sweeps, repeats, arguments.work)
        for key, row in results[name]["groups"].items():
            if "ratio" in row:
                rates = " ".join(f"{rate:.0f}" for rate in row["effective samples per hour"])
                print(f"{name} {key:20s} {rates} per hour, {row['ratio']:.2f} ± {row['ratio, error']:.2f}")
        print(results[name]["agreement"], flush=True)
    print(record("torsion_blocks", results, arguments.output))


if __name__ == "__main__":
    main()
