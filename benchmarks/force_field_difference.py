"""What changing the force field of alanine dipeptide costs: amber96 + OBC1 to amber99sbildn + OBC, in three ways.

    python benchmarks/force_field_difference.py [-n 20000] [--seed 96]

The learned path (samples of the shipped flow, weighted for both ends) and the tempered path (both ends by replica
exchange with hot states, BAR) are compared with MBAR over intermediate states of an independent simulation.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import openmm
import torch
import yaml
from _record import record
from openmm import app

from boltzflow.analysis import SystemDifference, system_difference
from boltzflow.systems import System, load_system

FILES = ("amber99sbildn.xml", "amber99_obc.xml")
LAMBDAS = [0.0, 0.25, 0.5, 0.75, 1.0]


def other_force_field(system: System, folder: Path) -> System:
    """The atoms of a system, in their order, under another force field; no cutoff, no constraints."""
    topology = system.topology.to_openmm()
    made = app.ForceField(*FILES).createSystem(topology, nonbondedMethod=app.NoCutoff, constraints=None)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(made))
    (folder / "topology.pdb").write_text((system.folder / system.definition.topology).read_text())
    definition = {
        "name": f"{system.name}_amber99sbildn",
        "description": f"the same atoms with {' and '.join(FILES)}",
        "temperature": system.temperature,
        "data": ".",
    }
    (folder / "system.yaml").write_text(yaml.safe_dump(definition))
    return load_system(folder)


def line(found: SystemDifference) -> dict:
    """What is kept of a difference."""
    values = found.as_dict()
    values["diagnostics"].pop("notes")
    print(f"{found.method:<8} {found.estimate}   {found.seconds:.0f} s   {found.estimate.method}", flush=True)
    return values


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=20_000, help="samples of every state")
    parser.add_argument("--seed", type=int, default=96)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    began = time.perf_counter()
    first = load_system("alanine_dipeptide")
    with tempfile.TemporaryDirectory() as folder:
        second = other_force_field(first, Path(folder))
        runs = {
            "learned": {"method": "learned", "n": options.n},
            "tempered": {"method": "bar", "n": options.n},
            "mbar": {"method": "mbar", "n": options.n // 2, "lambdas": LAMBDAS},
        }
        found = {
            name: system_difference(first, second, seed=options.seed + k, **run)
            for k, (name, run) in enumerate(runs.items())
        }
    seconds = time.perf_counter() - began
    results = {name: line(one) for name, one in found.items()}
    agreement = {
        f"{x} - {y}": {
            "difference": found[x].estimate.value - found[y].estimate.value,
            "z_score": found[x].estimate.z_score(found[y].estimate),
            "combined_error": (found[x].estimate.error ** 2 + found[y].estimate.error ** 2) ** 0.5,
        }
        for x, y in itertools.combinations(found, 2)
    }
    for name, values in agreement.items():
        print(f"{name}: {values['difference']:+.3f} ± {values['combined_error']:.3f} kT, z = {values['z_score']:+.2f}")
    print(f"{seconds:.0f} s in all")
    results |= {
        "agreement": agreement,
        "seconds": seconds,
        "force_fields": ["amber96 + OBC1 (shipped)", " + ".join(FILES)],
        "sector": first.target.sector_description,
        "n_copies": first.sector.n_copies,
        "command": f"python benchmarks/force_field_difference.py -n {options.n} --seed {options.seed} "
        f"--threads {options.threads}",
    }
    print(record("force_field_difference", results, options.output))


if __name__ == "__main__":
    main()
