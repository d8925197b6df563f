"""Makes the folders under systems/, but for alanine_dipeptide, from nothing but OpenMM and this package.

    python tools/make_systems.py [NAME ...]

Without a name all of them. What stands in a folder before is replaced.
"""

import argparse
import logging
import re
import shutil
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openmm
import torch
from openmm import app, unit

from boltzflow.preparation.build import minimise
from boltzflow.preparation.checks import check_hands, check_relaxed
from boltzflow.preparation.folder import topology_text, verify_topology, write_definition
from boltzflow.preparation.prepare import N_PROBES, reference_energies
from boltzflow.preparation.readme import net_charge
from boltzflow.preparation.recipes import recipes_for
from boltzflow.preparation.sequence import from_sequence
from boltzflow.systems import System, load_system, probe_positions

SYSTEMS = Path(__file__).resolve().parents[1] / "systems"
N_WATERS = 216
DENSITY = 0.997
"""g/cm³, of water at 298.15 K."""

OBC1 = "Solvent: Onufriev, Bashford, Case, *Proteins* 55, 383 (2004) (OBC1)."
OBC2 = "Solvent: Onufriev, Bashford, Case, *Proteins* 55, 383 (2004) (OBC2)."
GBN2 = "Solvent: Nguyen, Roe, Simmerling, *J. Chem. Theory Comput.* 9, 2020 (2013) (GBn2)."
FF14SB = "Force field: Maier et al., *J. Chem. Theory Comput.* 11, 3696 (2015) (ff14SB)."
FF99SB_ILDN = "Force field: Lindorff-Larsen et al., *Proteins* 78, 1950 (2010) (ff99SB-ILDN)."
SBG = (
    "The same set-up: Tan et al., *Scalable Equilibrium Sampling with Sequential Boltzmann Generators*, ICML 2025, "
    "[arXiv:2502.18462](https://arxiv.org/abs/2502.18462); data there by Langevin dynamics"
)
PITA = (
    "The same force field and solvent, down to 300 K: Akhound-Sadegh et al., *Progressive Inference-Time "
    "Annealing of Diffusion Models for Sampling from Boltzmann Densities*, 2025, "
    "[arXiv:2506.16471](https://arxiv.org/abs/2506.16471)."
)
TA_BG = (
    "The same molecule, force field and solvent: Schopmans, Friederich, *Temperature-Annealed Boltzmann Generators*, "
    "ICML 2025, [arXiv:2501.19077](https://arxiv.org/abs/2501.19077)"
)


@dataclass(frozen=True)
class Definition:
    """What a system is, and what its README says.

    Args:
        name: Of the folder.
        title: Of the README.
        molecule: In words, for `system.yaml`.
        solvent: In words.
        temperature: K.
        files: OpenMM force-field files.
        references: A line each.
        sequence: Of a peptide; None for water.
        cutoff: nm; None without one.
        water: Model, for a box of it.
        note: A paragraph on what is special.
    """

    name: str
    title: str
    molecule: str
    solvent: str
    temperature: float
    files: tuple[str, ...]
    references: tuple[str, ...]
    sequence: str | None = None
    cutoff: float | None = None
    water: str | None = None
    note: str = ""


_FF14SB_OBC1 = {
    "solvent": "OBC1 implicit solvent",
    "temperature": 310.0,
    "files": ("amber14-all.xml", "implicit/obc1.xml"),
}
_FF99SB_ILDN_OBC = {
    "solvent": "OBC2 implicit solvent",
    "temperature": 300.0,
    "files": ("amber99sbildn.xml", "amber99_obc.xml"),
}
_UNCAPPED = "Both ends are charged (NH3⁺ and COO⁻)."
_CUT = (
    "The cutoff of 2 nm is that of the publication: Coulomb and generalised Born interactions are shifted to zero "
    "there (reaction field of dielectric 1), Lennard-Jones is truncated."
)
_EXTENDED = "`topology.pdb` is extended, not folded: of the density it fixes no more than hands and labels."
_WIDE = "No pair of atoms of this molecule comes as far as that, so that only a constant is different from no cutoff."

DEFINITIONS = (
    Definition(
        "alanine_dipeptide_vacuum",
        "Alanine dipeptide in vacuum at 1000 K",
        "Alanine dipeptide (ACE-ALA-NME), ff96",
        "vacuum",
        1000.0,
        ("amber96.xml",),
        (
            "Force field: Kollman et al., in *Computer Simulation of Biomolecular Systems* 3, 83 (1997) (ff96).",
            "The same set-up (`openmmtools.testsystems.AlanineDipeptideVacuum(constraints=None)` at 1000 K): Wu, "
            "Köhler, Noé, *Stochastic Normalizing Flows*, NeurIPS 2020, [arXiv:2002.06707](https://arxiv.org/abs/2002.06707).",
        ),
        note="`system.xml` is that of [alanine_dipeptide](../alanine_dipeptide) without its generalised Born force: "
        "openmmtools makes both from the same Amber topology. At 1000 K peptide bonds isomerise: cis and trans are "
        "both part of the density.",
    ),
    Definition(
        "alanine_dipeptide_ff99sbildn",
        "Alanine dipeptide in ff99SB-ILDN",
        "Alanine dipeptide (ACE-ALA-NME), ff99SB-ILDN",
        **_FF99SB_ILDN_OBC,
        references=(FF99SB_ILDN, OBC2, f"{SBG}, 1 fs and 1/ps."),
        sequence="ACE ALA NME",
    ),
    Definition(
        "alanine_dipeptide_ff14sb",
        "Alanine dipeptide in ff14SB",
        "Alanine dipeptide (ACE-ALA-NME), ff14SB",
        **_FF14SB_OBC1,
        references=(FF14SB, OBC1, PITA),
        sequence="ACE ALA NME",
    ),
    Definition(
        "ace_aaa_nme",
        "Alanine tetrapeptide Ace-AAA-Nme",
        "Alanine tetrapeptide (ACE-ALA-ALA-ALA-NME), ff99SB-ILDN",
        **_FF99SB_ILDN_OBC,
        references=(FF99SB_ILDN, OBC2, f"{SBG}, 1 fs and 0.3/ps.", f"{TA_BG}."),
        sequence="ACE ALA ALA ALA NME",
    ),
    Definition(
        "ace_aaaaa_nme",
        "Alanine hexapeptide Ace-AAAAA-Nme",
        "Alanine hexapeptide (ACE-ALA-ALA-ALA-ALA-ALA-NME), ff99SB-ILDN",
        **_FF99SB_ILDN_OBC,
        references=(
            FF99SB_ILDN,
            OBC2,
            f"{TA_BG}; its code leaves the constraints of bonds with hydrogen to the default of bgmol, here there are "
            "none.",
        ),
        sequence="ACE ALA ALA ALA ALA ALA NME",
    ),
    Definition(
        "trialanine",
        "Trialanine (AAA)",
        "Trialanine AAA with charged ends, ff14SB",
        **_FF14SB_OBC1,
        references=(FF14SB, OBC1, f"{SBG}, 1 fs and 0.3/ps."),
        sequence="AAA",
        cutoff=2.0,
        note=f"{_UNCAPPED} {_CUT} {_WIDE}",
    ),
    Definition(
        "hexaalanine",
        "Hexaalanine (AAAAAA)",
        "Hexaalanine AAAAAA with charged ends, ff14SB",
        **_FF14SB_OBC1,
        references=(FF14SB, OBC1, f"{SBG}, 1 fs and 0.3/ps."),
        sequence="AAAAAA",
        cutoff=2.0,
        note=f"{_UNCAPPED} {_CUT}",
    ),
    Definition(
        "chignolin",
        "Chignolin",
        "Chignolin GYDPETGTWG with charged ends, ff14SB",
        **_FF14SB_OBC1,
        references=(
            FF14SB,
            OBC1,
            "Molecule: Honda et al., *Structure* 12, 1507 (2004) (1UAO).",
            f"{SBG}, 1 fs and 0.3/ps.",
        ),
        sequence="GYDPETGTWG",
        cutoff=2.0,
        note=f"{_UNCAPPED} ASP and GLU are charged, too. {_CUT} {_EXTENDED}",
    ),
    Definition(
        "trp_cage",
        "Trp-cage TC5b",
        "Trp-cage TC5b NLYIQWLKDGGPSSGRPPPS with charged ends, ff14SB",
        "GBn2 implicit solvent",
        300.0,
        ("amber14-all.xml", "implicit/gbn2.xml"),
        (
            FF14SB,
            GBN2,
            "Molecule: Neidigh, Fesinmeyer, Andersen, *Nat. Struct. Biol.* 9, 425 (2002) (TC5b, 1L2Y).",
            "Folded with this solvent and a close relative of this force field: Nguyen et al., *J. Am. Chem. Soc.* "
            "136, 13959 (2014).",
        ),
        sequence="NLYIQWLKDGGPSSGRPPPS",
        note=f"{_UNCAPPED} {_EXTENDED}",
    ),
    Definition(
        "tip3p_box",
        "A box of TIP3P water",
        f"{N_WATERS} rigid TIP3P waters in a cubic box",
        "PME",
        298.15,
        ("amber14/tip3p.xml",),
        ("Jorgensen et al., *J. Chem. Phys.* 79, 926 (1983) (TIP3P).",),
        cutoff=0.9,
        water="tip3p",
    ),
    Definition(
        "tip4pew_box",
        "A box of TIP4P-Ew water",
        f"{N_WATERS} rigid TIP4P-Ew waters in a cubic box",
        "PME",
        298.15,
        ("amber14/tip4pew.xml",),
        ("Horn et al., *J. Chem. Phys.* 120, 9665 (2004) (TIP4P-Ew).",),
        cutoff=0.9,
        water="tip4pew",
    ),
)


def main() -> None:
    """Make what was named."""
    known = {definition.name: definition for definition in DEFINITIONS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(known))
    options = parser.parse_args()
    if unknown := set(options.names) - set(known):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; expected {', '.join(known)}")
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    for name in options.names or known:
        system = make(known[name])
        print(f"{name}: {system.n_atoms} atoms, {system.dimension} dimensions, {', '.join(system.recipes)}")


def make(definition: Definition) -> System:
    """Write the folder of one system, and read it back."""
    folder = SYSTEMS / definition.name
    system, topology, positions, history = _water(definition) if definition.water else _molecule(definition)
    by_hand = {path.name: path.read_text(encoding="utf-8") for path in (folder / "recipes").glob("*.yaml")}
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "recipes").mkdir(parents=True)
    (folder / "system.xml").write_text(openmm.XmlSerializer.serialize(system), encoding="utf-8")
    (folder / "topology.pdb").write_text(topology_text(topology, positions), encoding="utf-8")
    values = {
        "name": definition.name,
        "description": f"{definition.molecule}, {definition.solvent}, {_rigidity(definition)}",
        "temperature": definition.temperature,
        "forcefield": list(definition.files),
    }
    path = folder / "system.yaml"
    comment = (
        f"OpenMM {openmm.__version__}, Reference platform, kJ/mol, of "
        f"boltzflow.systems.probe_positions(topology, {N_PROBES})"
    )
    write_definition(path, values, energies=(), comment=comment)
    written = load_system(folder)
    verify_topology(topology, written.topology)
    energies = reference_energies(system, probe_positions(written.positions, N_PROBES))
    write_definition(path, values, energies=energies, comment=comment)
    written = load_system(folder)
    recipes = recipes_for(written)
    for file, text in by_hand.items():  # those that it makes are written over
        (folder / "recipes" / file).write_text(text, encoding="utf-8")
    for name, text in recipes.items():
        (folder / "recipes" / f"{name}.yaml").write_text(_shipped_recipe(definition.name, text), encoding="utf-8")
    write_definition(path, {**values, "recipe": next(iter(recipes))}, energies=energies, comment=comment)
    written = load_system(folder)
    (folder / "README.md").write_text(_readme(definition, written, history), encoding="utf-8")
    return written


def _rigidity(definition: Definition) -> str:
    return "rigid molecules" if definition.water else "no constraints"


def _molecule(definition: Definition) -> tuple[openmm.System, app.Topology, np.ndarray, str]:
    """A minimised molecule in infinite space."""
    if definition.sequence is None:  # alanine dipeptide in vacuum
        shipped = load_system("alanine_dipeptide")
        system = openmm.XmlSerializer.deserialize((shipped.folder / "system.xml").read_text(encoding="utf-8"))
        for index in reversed(range(system.getNumForces())):
            if isinstance(system.getForce(index), openmm.CustomGBForce | openmm.CMMotionRemover):
                system.removeForce(index)
        topology = app.PDBFile(str(shipped.folder / "topology.pdb")).topology
        start, history = shipped.positions.numpy(), "the positions of alanine_dipeptide, energy-minimised in vacuum"
    else:
        field = app.ForceField(*definition.files)
        topology, start = from_sequence(definition.sequence, forcefield=field)
        cut = {} if definition.cutoff is None else {"nonbondedCutoff": definition.cutoff * unit.nanometer}
        system = field.createSystem(
            topology,
            nonbondedMethod=app.CutoffNonPeriodic if cut else app.NoCutoff,
            constraints=None,
            removeCMMotion=False,
            **cut,
        )
        history = f"extended, built from the sequence `{definition.sequence}`, energy-minimised"
    _, energy, positions, forces = minimise(system, start)
    check_relaxed(topology, system, positions, energy, forces)
    check_hands(topology, start, positions)
    return system, topology, positions - positions.mean(0), history


def _water(definition: Definition) -> tuple[openmm.System, app.Topology, np.ndarray, str]:
    """A minimised configuration of liquid water at the density of the experiment."""
    mass = N_WATERS * (15.99943 + 2 * 1.007947) * unit.dalton / unit.AVOGADRO_CONSTANT_NA
    width = float((mass / (DENSITY * unit.gram / unit.milliliter)).value_in_unit(unit.nanometer**3) ** (1 / 3))
    topology, start = _lattice(width)
    field = app.ForceField(*definition.files)
    modeller = app.Modeller(topology, start * unit.nanometer)
    modeller.addExtraParticles(field)
    topology, start = modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": definition.cutoff, "removeCMMotion": False}
    coarse = field.createSystem(topology, **options)
    system = field.createSystem(topology, **options, ewaldErrorTolerance=1e-6)
    *_, melting, _ = minimise(coarse, start)
    integrator = openmm.LangevinMiddleIntegrator(definition.temperature, 5.0, 0.002)
    integrator.setRandomNumberSeed(1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(coarse, integrator, platform, {"Threads": "1", "DeterministicForces": "true"})
    context.setPositions(melting)
    context.setVelocitiesToTemperature(definition.temperature, 1)
    integrator.step(10_000)
    melted = np.array(context.getState(positions=True).getPositions(asNumpy=True)._value)
    _, energy, positions, _ = minimise(system, melted)  # its forces are those that constraints take up
    if not energy < -40.0 * N_WATERS:
        raise SystemExit(f"{definition.name}: {energy / N_WATERS:.1f} kJ/mol for a molecule is not that of a liquid")
    return system, topology, positions, "a lattice, 20 ps of Langevin dynamics, energy-minimised"


def _lattice(width: float) -> tuple[app.Topology, np.ndarray]:
    """Waters of random orientation on a cubic lattice; constraints bring them to their model's geometry."""
    rng = np.random.default_rng(1)
    n = round(N_WATERS ** (1 / 3))
    topology, positions = app.Topology(), []
    topology.setPeriodicBoxVectors(width * np.eye(3) * unit.nanometer)
    chain = topology.addChain()
    half = np.radians(104.52) / 2
    shape = 0.09572 * np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    for cell in np.ndindex(n, n, n):
        residue = topology.addResidue("HOH", chain)
        atoms = [topology.addAtom(x, app.Element.getBySymbol(x[0]), residue) for x in ("O", "H1", "H2")]
        topology.addBond(atoms[0], atoms[1])
        topology.addBond(atoms[0], atoms[2])
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(shape @ rotation.T + (np.array(cell) + 0.5) * width / n)
    return topology, np.concatenate(positions)


def _shipped_recipe(name: str, text: str) -> str:
    """A recipe for a system that is found by its name, with data in the folder where it is run."""
    text = text.replace(f"{name}/recipes/", f"systems/{name}/recipes/")
    for recipe in ("likelihood", "self_weighted", "energy_only_1_cooling", "energy_only"):
        # runs of shipped recipes go by the recipe alone
        command = f"boltzflow train systems/{name}/recipes/{recipe}.yaml"
        text = re.sub(f"{command}(?!.* -o )", f"{command} -o runs/{name}-{recipe}", text)
    text = text.replace("in the folder that holds this system's", "in a checkout of this repository")
    text = text.replace("../data/reference.h5 # relative to this file", f"{name}.h5")
    return text.replace("system: ..\n", f"system: {name}\n")


def _readme(definition: Definition, system: System, history: str) -> str:
    forces = Counter(type(force).__name__ for force in system.openmm_system.getForces())
    rows = {"force field": " + ".join(f"`{file}`" for file in definition.files)}
    if definition.water:
        rows |= {
            "electrostatics": f"PME, cutoff {definition.cutoff:g} nm, error tolerance 10⁻⁶",
            "Lennard-Jones": f"cutoff {definition.cutoff:g} nm, with long-range correction",
            "box": f"cubic, {system.box[0, 0]:.4f} nm, {DENSITY} g/cm³",
            "constraints": "both bonds and the distance of the hydrogens of every molecule",
        }
    else:
        cutoff = "none" if definition.cutoff is None else f"{definition.cutoff:g} nm (CutoffNonPeriodic)"
        rows |= {"solvent": definition.solvent, "cutoff": cutoff, "constraints": "none"}
        rows["net charge"] = f"{net_charge(system.openmm_system):+g} e"
    rows |= {
        "origin": f"`python tools/make_systems.py {definition.name}`, OpenMM {openmm.__version__}",
        "structure": history,
    }
    lines = [
        f"# {definition.title}\n",
        f"{definition.molecule}: {system.n_atoms} {'particles' if definition.water else 'atoms'}, {system.dimension} "
        f"{'degrees of freedom' if definition.water else 'internal coordinates'}, {system.temperature:g} K.\n",
        "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in rows.items()) + "\n",
        _wrapped(f"`system.xml` holds {', '.join(name if n == 1 else f'{n} {name}' for name, n in forces.items())}."),
    ]
    lines += [_wrapped(definition.note)] if definition.note else []
    lines += ["## What the density is\n", _density(definition, system), "## Recipes\n", _recipes(definition, system)]
    lines += ["## References\n", "\n".join(f"- {reference}" for reference in definition.references), ""]
    return "\n".join(lines)


def _density(definition: Definition, system: System) -> str:
    if definition.water:
        sites = " The charge site M of every molecule follows its atoms and adds nothing."
        return _wrapped(
            "Positions of rigid molecules in the box, modulo translations: three coordinates for each atom, less the "
            f"constraints, less the three of the whole.{sites if definition.water == 'tip4pew' else ''} All labellings "
            "of molecules and of hydrogens belong to it. The torch force field evaluates PME as the converged Ewald "
            "sum; OpenMM's PME at the tolerance above is within 10⁻⁶ of it."
        )
    copies = system.sector.n_copies
    return _wrapped(
        "Cartesian positions modulo rigid motions, restricted to the **sector** of `topology.pdb`: the hand of its "
        "stereo-centres, and the labelling of identical hydrogens. The Boltzmann factor is zero outside. log Z is that "
        f"of the sector; there are {copies:,} labellings that no rotation joins, each with the same, so that over all "
        f"of them log Z is larger by log {copies:,} = {np.log(float(copies)):.6f}."
    )


def _recipes(definition: Definition, system: System) -> str:
    texts = {
        "likelihood": "stage 1 of a spline flow: maximum likelihood on frames of parallel tempering; the default",
        "self_weighted": "stage 2: on the model's own weighted samples",
        "energy_only_1_cooling": "without data, stage 1: path gradients while the temperature falls",
        "energy_only": "stage 2: buffers of weighted samples at the temperature of the system",
        "continuous_1_start": "stage 1 of a continuous flow: a product of marginals of internal coordinates",
        "continuous": "stage 2: Cartesian Euler steps along a velocity field, by path gradients",
        "parallel_tempering": "one ensemble, all temperatures weighted by MBAR",
        "molecular_dynamics": "plain OpenMM molecular dynamics",
        "real_nvp": "a published baseline to compare with: RealNVP in mixed coordinates",
        "stochastic_flow": "the same with the Metropolis blocks of the publication",
        "stochastic_splines": "spline couplings in internal coordinates with Metropolis blocks of learned steps",
    }
    default = system.definition.recipe
    rows = [f"| `recipes/{name}.yaml` | {texts[name]} |" for name in texts if name in system.recipes]
    return (
        "| file | what it is |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```bash\nboltzflow forecast {definition.name}\n"
        + f"boltzflow simulate systems/{definition.name}/recipes/{default}.yaml\n```\n"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 180, break_long_words=False, break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    main()
