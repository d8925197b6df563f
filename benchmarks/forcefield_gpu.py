"""Energies and forces per second on a GPU, without OpenMM: alanine dipeptide and chignolin by batch.

python benchmarks/forcefield_gpu.py --prepare FOLDER                 where the package is installed in full
python benchmarks/forcefield_gpu.py FOLDER [--output results.json]   on the GPU, with torch, Triton and numpy alone

The folder holds force fields as `ForceField.save` writes them, with structures and the energies and forces that the
eager torch force field has for them on the CPU in float64. They are compared before anything is timed.
"""

import argparse
from pathlib import Path

import torch
from _record import best_seconds, record

from boltzflow.forcefield import ForceField

SYSTEMS = ("alanine_dipeptide", "chignolin")
BATCHES = tuple(2**k for k in range(10, 21))
MOST_DISTANCES = 4e8
"""In one call of eager torch."""


def prepare(folder: Path) -> None:
    from boltzflow.systems import load_system

    folder.mkdir(parents=True, exist_ok=True)
    for name in SYSTEMS:
        system = load_system(name)
        rng = torch.Generator().manual_seed(0)
        shape = (64, *system.positions.shape)
        positions = system.positions + 0.005 * torch.randn(shape, generator=rng, dtype=torch.float64)
        positions = positions.float().double()  # so that rounding them is no part of the deviations
        forcefield = system.potential.eager.double()
        energy, force = forcefield.energy_and_force(positions)
        forcefield.save(folder / f"{name}.pt")
        torch.save({"positions": positions, "energy": energy, "force": force}, folder / f"{name}.structures.pt")


def deviation(forcefield: torch.nn.Module, structures: dict[str, torch.Tensor]) -> dict[str, float]:
    """Largest |dU| in kJ/mol, as terms of 1000 kJ/mol may cancel, and largest |dF_i| / (1 + rms |F|)."""
    device, dtype = forcefield.device, forcefield.dtype
    found = forcefield.energy_and_force(structures["positions"].to(device, dtype))
    energy, force = (part.cpu().double() for part in found)
    rms = structures["force"].square().sum(-1).mean(-1).sqrt()
    return {
        "energy": (energy - structures["energy"]).abs().max().item(),
        "force": ((force - structures["force"]).norm(dim=-1).amax(-1) / (1 + rms)).max().item(),
    }


def measure(forcefield: ForceField, structures: dict[str, torch.Tensor], batches: list[int]) -> dict[str, dict]:
    """Deviation, conformations per second and peak memory of each back-end."""
    found: dict[str, dict] = {}
    on_gpu = forcefield.device.type == "cuda"
    compiled = forcefield.compiled()
    kinds = {"eager": forcefield} if compiled.backend == "eager" else {compiled.backend: compiled, "eager": forcefield}
    for kind, potential in kinds.items():
        row = {"deviation": deviation(potential, structures), "conformations per second": {}, "peak bytes": {}}
        for batch in batches:
            if kind == "eager" and batch * forcefield.n_atoms**2 / 2 > MOST_DISTANCES:
                continue
            x = structures["positions"].to(forcefield.device, forcefield.dtype)[torch.arange(batch) % 64]
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds = best_seconds(lambda p=potential, x=x: p.energy_and_force(x), repeats=5, synchronise=on_gpu)
            row["conformations per second"][str(batch)] = batch / seconds
            if on_gpu:
                row["peak bytes"][str(batch)] = torch.cuda.max_memory_allocated()
        found[kind] = row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--prepare", action="store_true", help="write the folder, and measure nothing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, metavar="NAME")
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--output")
    options = parser.parse_args()
    if options.prepare:
        prepare(options.folder)
        return
    torch.set_num_threads(1)
    results: dict[str, object] = {"unit": "energies with forces per second", "device": options.device}
    for name in options.systems:
        structures = torch.load(options.folder / f"{name}.structures.pt")
        for dtype in (torch.float32, torch.float64):
            forcefield = ForceField.load(options.folder / f"{name}.pt").to(options.device, dtype)
            single = dtype == torch.float32
            for kind, row in measure(forcefield, structures, options.batches).items():
                title = f"{name}, {kind}, {'float32' if single else 'float64'}"
                results[title] = row
                rates = (f"{rate:.3g}" for rate in row["conformations per second"].values())
                print(f"{title:45s}" + "".join(f"{rate:>10s}" for rate in rates), flush=True)
                bounds = (1e-2, 1e-3) if single else (1e-6, 1e-6)
                if not (row["deviation"]["energy"] < bounds[0] and row["deviation"]["force"] < bounds[1]):
                    raise SystemExit(f"{title} is off: {row['deviation']}")
    print(record("forcefield_gpu", results, options.output))


if __name__ == "__main__":
    main()
