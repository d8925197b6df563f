"""Makes the alanine-dipeptide reference that ships: parallel tempering at 300 K, in float64, scalars from every record.

    python benchmarks/reference_alanine_dipeptide.py [--records 4000] [--seed 300]

Writes data/alanine_dipeptide/reference.h5 (thinned frames) and reference.json (scalars with errors over the whole run).
"""

import argparse
import json
import math
from pathlib import Path

import torch

from boltzflow.analysis.observables import torsion_atoms
from boltzflow.coordinates import InternalCoordinateMap
from boltzflow.io.provenance import package_versions
from boltzflow.simulation import ParallelTempering, entries, independent_visits, molecule_kernels
from boltzflow.simulation.frames import chains_to_ensemble
from boltzflow.systems import System, load_system

TEMPERATURES = (300.0, 400.0, 540.0)
ALPHA_L = (0.0, math.radians(130.0))


def torsion_observables(system: System) -> dict:
    """phi, psi and the two peptide torsions as functions of a State."""
    chart = InternalCoordinateMap(system.zmatrix)
    rows = {tuple(sorted(atoms)): k for k, atoms in enumerate(system.zmatrix.torsion_atoms.tolist())}
    ca = next(a.index for a in system.topology.atoms if a.name == "CA")
    wanted = {"phi": torsion_atoms(system.topology, "phi"), "psi": torsion_atoms(system.topology, "psi")}
    wanted["omega_ace"] = (1, 4, 6, ca)
    wanted["omega_nme"] = (ca, 14, 16, 18)
    columns = {name: rows[tuple(sorted(atoms))] for name, atoms in wanted.items()}
    return {name: (lambda state, k=k: chart(state["positions"])[0].torsions[:, k]) for name, k in columns.items()}


def main() -> None:
    """Simulate, estimate, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--chains", type=int, default=400)
    parser.add_argument("--burn-in", type=int, default=300)
    parser.add_argument("--frames", type=int, default=16_000)
    parser.add_argument("--seed", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "data" / "alanine_dipeptide")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    system = load_system("alanine_dipeptide", dtype=torch.float64)
    target = system.target
    simulation = ParallelTempering(
        target,
        target.state(system.positions[None]),
        temperatures=TEMPERATURES,
        n_chains=options.chains,
        kernels=molecule_kernels(system.bonds, system.elements),
        observables=torsion_observables(system),
        seed=options.seed,
    )
    simulation.burn_in(options.burn_in)
    per_frame = max(1, options.records * options.chains // options.frames)
    result = simulation.run(options.records, sweeps_per_record=2, records_per_frame=per_frame)

    phi = result.observables["phi"]
    inside = (phi >= ALPHA_L[0]) & (phi < ALPHA_L[1])
    visits, p = independent_visits(inside), float(inside.double().mean())
    error = math.sqrt((1 - p) / visits) / (1 - p)
    series = result.diagnostics["series"]
    u = result.observables["reduced_energy"]
    scalars = {
        "system": system.name,
        "temperature": system.temperature,
        "n_records": u.numel(),
        "n_chains": options.chains,
        "delta_f_alpha_l": {
            "value": -math.log(p / (1 - p)),
            "error": error,
            "unit": "kT",
            "state": "0 < phi < 130 degrees, against the rest",
            "population": p,
            "independent_visits": visits,
            "entries": entries(inside),
            "method": "frequency; error from the statistical inefficiency of the indicator within chains",
        },
        "mean_reduced_energy": {
            "value": float(u.mean()),
            "error": float(u.std()) / math.sqrt(series["reduced_energy"]["n_effective"]),
            "unit": "kT",
        },
        "cis_fraction": {
            name: float((result.observables[name].abs() < math.pi / 2).double().mean())
            for name in ("omega_ace", "omega_nme")
        },
        "temperatures": list(TEMPERATURES),
        "swap_rates": result.diagnostics["swap_rates"],
        "round_trips": result.diagnostics["round_trips"],
        "split_r_hat": {name: values["split_r_hat"] for name, values in series.items()},
        "ledger": result.ledger.as_dict(),
        "seconds": result.seconds,
        "seed": options.seed,
        "command": f"python benchmarks/reference_alanine_dipeptide.py --records {options.records} "
        f"--chains {options.chains} --burn-in {options.burn_in} --frames {options.frames} --seed {options.seed}",
        "versions": package_versions(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reference.json").write_text(json.dumps(scalars, indent=2) + "\n")
    print(json.dumps(scalars, indent=2))

    n_frames = result.reduced_energies.numel()
    ensemble = chains_to_ensemble(system, result, method="pt", seed=options.seed, wanted=n_frames)
    ensemble.save(options.output / "reference.h5")


if __name__ == "__main__":
    main()
