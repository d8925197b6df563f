"""Cost of energy and force against number of atoms and batch, beside a loop over one OpenMM Context in the same run.

python benchmarks/forcefield_scaling.py [--systems NAME ...] [--batches N ...] [--budget SECONDS] [--output FILE]

On one thread: shipped systems from 22 atoms on and a peptide of about 1000 atoms, batches from 1 to 65 536 in powers of
four, float64 and float32, eager and compiled. A point is skipped, and named as such, where one call would take longer
than the budget by what the batch before took, or where eager torch would keep too many distances. Peak memory is that
of a process of its own, which evaluates several times what its bound allows at once.
"""

import argparse
import json
import subprocess
import sys

import openmm
import torch
from _record import best_seconds, record
from forcefield import openmm_loop
from openmm import app

from boltzflow.forcefield import from_openmm
from boltzflow.preparation.sequence import from_sequence
from boltzflow.systems import load_system

SHIPPED = ("alanine_dipeptide", "alanine_dipeptide_ff99sbildn", "ace_aaa_nme", "hexaalanine", "chignolin", "trp_cage")
LONG = "peptide of 64 residues"
BATCHES = tuple(4**k for k in range(9))
MOST_DISTANCES = 2e9
"""In one call of eager torch, which works through them in chunks."""
BOUND = 256 * 2**20
"""Of the measurement of memory, bytes."""


def long_peptide() -> tuple[openmm.System, torch.Tensor]:
    """A peptide of 64 residues in ff14SB with OBC1, about 1000 atoms."""
    field = app.ForceField("amber14-all.xml", "implicit/obc1.xml")
    topology, positions = from_sequence("NLYIQWLKDGGPSSGRPPPS" * 3 + "NLYI", forcefield=field)
    system = field.createSystem(topology, nonbondedMethod=app.NoCutoff, removeCMMotion=False)
    return system, torch.from_numpy(positions)


def load(name: str) -> tuple[openmm.System, torch.Tensor]:
    if name == LONG:
        return long_peptide()
    system = load_system(name)
    return system.openmm_system, system.positions


def rates(system: openmm.System, x: torch.Tensor, batches: list[int], budget: float) -> dict[str, dict[str, object]]:
    """Conformations per second of each back-end and batch; text where a point is skipped."""
    found: dict[str, dict[str, object]] = {}
    n_pairs = x.shape[1] ** 2 / 2
    for dtype in (torch.float64, torch.float32):
        eager = from_openmm(system, dtype=dtype)
        for kind, forcefield in (("eager", eager), ("compiled", eager.compiled())):
            row = found.setdefault(f"{kind} {str(dtype).removeprefix('torch.')}", {})
            each = 0.0  # seconds for a conformation, by the batch before
            for batch in batches:
                if each * batch > budget:
                    row[str(batch)] = f"skipped: {each * batch:.0f} s a call"
                elif kind == "eager" and batch * n_pairs > MOST_DISTANCES:
                    row[str(batch)] = f"skipped: {batch * n_pairs:.0e} distances"
                else:
                    part = x[torch.arange(batch) % len(x)].to(dtype)
                    repeats = max(1, min(20, int(budget / max(each * batch, 1e-4) / 4)))
                    seconds = best_seconds(lambda f=forcefield, p=part: f.energy_and_force(p), repeats=repeats)
                    each, row[str(batch)] = seconds / batch, batch / seconds
    return found


def memory(name: str) -> dict[str, int]:
    """Peak memory of a process that evaluates four times what its bound allows at once, eagerly in float64."""
    script = f"""
import json, sys, torch
sys.path[:0] = {sys.path!r}
from boltzflow.forcefield import from_openmm
from boltzflow.forcefield.chunks import bytes_per_conformation
from boltzflow.systems import load_system

def status(key):
    with open("/proc/self/status") as file:
        return 1024 * int(next(line.split()[1] for line in file if line.startswith(key)))

torch.set_num_threads(1)
system = load_system({name!r})
forcefield = from_openmm(system.openmm_system)
forcefield.chunk_bytes = {BOUND}
one = bytes_per_conformation(lambda x: forcefield._energy(x, None), system.positions.T[..., None].contiguous())
x = system.positions[None].repeat(4 * {BOUND} // one, 1, 1)
forcefield.energy_and_force(x[:1])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak up to here
before = status("VmRSS")
forcefield.energy_and_force(x)
print(json.dumps(dict(bound={BOUND}, conformations=len(x), at_once=one * len(x), peak=status("VmHWM") - before)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="*", default=[*SHIPPED, LONG], metavar="NAME")
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES, metavar="N")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of one call")
    parser.add_argument("--output")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {"unit": "energies with forces per second", "device": "cpu"}
    for name in options.systems:
        system, positions = load(name)
        rng = torch.Generator().manual_seed(0)
        x = positions + 0.002 * torch.randn(64, *positions.shape, generator=rng, dtype=torch.float64)
        some = x[: max(2, 3000 // len(positions))]  # a large one takes seconds on the Reference platform
        loops = {platform: openmm_loop(system, some, platform) for platform in ("Reference", "CPU")}
        measured = rates(system, x, options.batches, options.budget)
        found: dict[str, object] = {"atoms": len(positions), "one OpenMM Context, one thread": loops, "torch": measured}
        best = max(rate for row in measured.values() for rate in row.values() if not isinstance(rate, str))
        found["best over the faster OpenMM platform"] = best / max(loops.values())
        if name != LONG:
            found["memory"] = memory(name)
        results[name] = found
        print(f"{name}: {len(positions)} atoms, OpenMM {max(loops.values()):.0f}/s, best {best:.0f}/s", flush=True)
        for kind, row in measured.items():
            shown = (f"{rate:.3g}" if not isinstance(rate, str) else "-" for rate in row.values())
            print(f"    {kind:18s}" + "".join(f"{text:>10s}" for text in shown), flush=True)
    print(record("forcefield_scaling", results, options.output))


if __name__ == "__main__":
    main()
