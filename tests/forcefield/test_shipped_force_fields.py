"""Every XML force field that ships with OpenMM: parity with OpenMM of what has no polarisability, the rest refused.

Files are read from OpenMM's own folder; one that nobody has classified below fails the test.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

import openmm
import pytest
import torch
from openmm import app, unit

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import from_openmm
from boltzflow.forcefield.parity import parity
from tests.forcefield.molecules import CUTOFF, DATA, field, molecule, solvated

SWITCHED = {"nonbondedCutoff": CUTOFF * unit.nanometer, "switchDistance": 0.5}
METHODS = {
    "vacuum": {"nonbondedMethod": app.NoCutoff},
    "cutoff": {"nonbondedMethod": app.CutoffNonPeriodic, "constraints": app.HBonds, **SWITCHED},
    "box": {"nonbondedMethod": app.CutoffPeriodic, **SWITCHED},
    "PME": {"nonbondedMethod": app.PME, "constraints": app.HBonds, **SWITCHED},
}

PROTEIN = [("all amino acids", "vacuum"), ("peptide", "cutoff")]
OPEN = [("open chain", "vacuum"), ("peptide", "cutoff")]  # CHARMM's caps are patches, no residues
NUCLEIC = [("DNA", "vacuum"), ("RNA", "cutoff")]
IONS = [("ions in water", "box"), ("ions in water", "PME")]
WATER = [("water", "box"), ("water", "PME")]
IMPLICIT = [("peptide", "vacuum"), ("peptide", "cutoff")]
LIPID = [("lipid", "vacuum"), ("cholesterol", "cutoff")]
IN_WATER = [("alanine in water", "PME")]
AMBER = (
    *("amber03", "amber10", "amber96", "amber99sb", "amber99sbildn"),
    *("amber99sbnmr", "amberfb15", "amber14-all", "amber19-all"),
)
WATERS = ("opc", "opc3", "spce", "tip3p", "tip3pfb", "tip4pew", "tip4pfb")
CHARMM_WATERS = ("spce", "tip3p-pme-b", "tip3p-pme-f", "tip4p2005", "tip4pew", "tip5p", "tip5pew", "water")
GLYCAM = ("amber14/protein.ff14SB.xml", "amber14/GLYCAM_06j-1.xml")

# file -> the Systems it is checked on, and the files that it needs beside it
SHIPPED: dict[str, list[tuple[tuple[str, ...], list[tuple[str, str]]]]] = {
    **{f"{name}.xml": [((f"{name}.xml",), PROTEIN + NUCLEIC)] for name in AMBER},
    **{
        f"{name}_obc.xml": [((f"{name}.xml", f"{name}_obc.xml"), IMPLICIT)]
        for name in ("amber03", "amber10", "amber96")
    },
    "amber99_obc.xml": [(("amber99sbildn.xml", "amber99_obc.xml"), IMPLICIT)],
    **{
        file: [((file,), PROTEIN)]
        for file in ("amber14/protein.ff14SB.xml", "amber14/protein.ff15ipq.xml", "amber19/protein.ff19SB.xml")
    },
    **{
        file: [((file,), [("DNA", "vacuum"), ("DNA", "cutoff")])]
        for file in ("amber14/DNA.OL15.xml", "amber14/DNA.bsc1.xml", "amber19/DNA.OL21.xml")
    },
    "amber14/RNA.OL3.xml": [(("amber14/RNA.OL3.xml",), [("RNA", "vacuum"), ("RNA", "cutoff")])],
    "amber14/GLYCAM_06j-1.xml": [(GLYCAM, [("glycan", "vacuum"), ("glycan", "cutoff")])],
    "amber14/lipid17.xml": [(("amber14/lipid17.xml",), LIPID)],
    "amber19/lipid21.xml": [(("amber19/lipid21.xml",), LIPID)],
    **{
        f"implicit/{model}.xml": [(("amber14-all.xml", f"implicit/{model}.xml"), IMPLICIT)]
        for model in ("hct", "obc1", "obc2", "gbn", "gbn2")
    },
    **{f"{model}.xml": [((f"{model}.xml",), WATER)] for model in (*WATERS, "tip5p")},
    **{f"amber{year}/{model}.xml": [((f"amber{year}/{model}.xml",), IONS)] for model in WATERS for year in (14, 19)},
    **{f"charmm36/{model}.xml": [((f"charmm36/{model}.xml",), IONS)] for model in CHARMM_WATERS},
    **{f"charmm36_2024/{model}.xml": [((f"charmm36_2024/{model}.xml",), IONS)] for model in CHARMM_WATERS},
    "charmm36.xml": [
        (("charmm36.xml",), [*OPEN, ("lipid", "vacuum")]),
        (("charmm36.xml", "implicit/obc2.xml"), [("peptide", "vacuum")]),
        (("charmm36.xml", "charmm36/water.xml"), [("dipeptide in water", "PME")]),
    ],
    "charmm36_2024.xml": [
        (("charmm36_2024.xml",), [*OPEN, ("lipid", "vacuum"), ("lipid", "cutoff"), ("RNA", "cutoff")]),
        (("charmm36_2024.xml", "implicit/gbn2.xml"), [("peptide", "vacuum")]),
        (("charmm36_2024.xml", "charmm36_2024/water.xml"), [("dipeptide in water", "PME")]),
    ],
}
SHIPPED["amber14-all.xml"].append((("amber14-all.xml", "amber14/tip3pfb.xml"), IN_WATER))
SHIPPED["amber19-all.xml"].append((("amber19-all.xml", "amber19/opc.xml"), IN_WATER))
SHIPPED["amber99sb.xml"].append((("amber99sb.xml", "tip4pew.xml"), [*IN_WATER, *IONS]))

# file -> a System, and the files beside it
POLARISABLE = {
    **{f"amoeba{year}.xml": ("alanine", f"amoeba{year}.xml") for year in (2009, 2013, 2018)},
    **{f"amoeba{year}_gk.xml": ("alanine", f"amoeba{year}.xml", f"amoeba{year}_gk.xml") for year in (2009, 2013, 2018)},
    "iamoeba.xml": ("water", "iamoeba.xml"),
    "swm4ndp.xml": ("water", "swm4ndp.xml"),
    "charmm_polar_2013.xml": ("water", "charmm_polar_2013.xml"),
    "charmm_polar_2019.xml": ("alanine", "charmm_polar_2019.xml"),
    "charmm_polar_2023.xml": ("water", "charmm_polar_2023.xml"),
}

UNREADABLE = {"amber99Test.xml": "coulomb14scale"}
"""What OpenMM itself cannot read."""


def _case(files: tuple[str, ...], name: str, method: str) -> object:
    label = f"{'+'.join(files).replace('.xml', '')}-{name}-{method}".replace(" ", "_")
    # To match the patches of CHARMM's residues takes OpenMM up to 20 s; test_charmm.py has Systems that are stored.
    slow = ("charmm36_2024.xml" in files and name != "lipid") or files == ("charmm36.xml", "implicit/obc2.xml")
    return pytest.param(files, name, method, id=label, marks=[pytest.mark.slow] if slow else [])


CASES = [
    _case(files, name, method)
    for systems in SHIPPED.values()
    for files, molecules in systems
    for name, method in molecules
]


def _force_fields() -> set[str]:
    files = {str(path.relative_to(DATA)).replace("\\", "/"): path for path in Path(DATA).rglob("*.xml")}
    return {name for name, path in files.items() if next(ElementTree.iterparse(path, ["start"]))[1].tag == "ForceField"}


def test_every_file_is_classified():
    """A file that OpenMM adds is sorted into one of the three tables above."""
    assert _force_fields() == {*SHIPPED, *POLARISABLE, *UNREADABLE}
    for file, systems in SHIPPED.items():
        assert all(file in files and molecules for files, molecules in systems)


def _build(files: tuple[str, ...], name: str, method: str) -> tuple[openmm.System, torch.Tensor]:
    if name.endswith("water"):
        topology, x = solvated(name.split()[0], *files)
    else:
        topology, x = molecule(name)
    return field(*files).createSystem(topology, **METHODS[method]), x


@pytest.mark.parametrize(("files", "name", "method"), CASES)
def test_parity(files, name, method):
    """Force by force and together, at a minimum, perturbed by 2 to 50 pm, and with atoms pushed into one another."""
    system, x = _build(files, name, method)
    found = parity(system, x, frames=1)
    assert found.unknown == ()
    assert found.failed == ()
    assert found.total.passed
    assert found.single.energy < 1e-4
    assert len(found.kinds) == 8
    assert (found.pme_offset is not None) == (method == "PME")
    constrained = METHODS[method].get("constraints") is not None or name.endswith("water")
    assert (system.getNumConstraints() > 0) == constrained


def test_the_systems_hold_what_real_ones_hold():
    """Otherwise the parity above would say little."""
    system, _ = _build(("charmm36.xml", "charmm36/water.xml"), "dipeptide in water", "PME")
    forces = {type(force).__name__: force for force in system.getForces()}
    assert forces["CustomNonbondedForce"].getUseSwitchingFunction()
    assert forces["NonbondedForce"].getNonbondedMethod() == openmm.NonbondedForce.PME
    assert {"CMAPTorsionForce", "CustomTorsionForce", "CustomBondForce"} <= set(forces)
    system, _ = _build(("charmm36/tip4pew.xml",), "ions in water", "PME")
    (pairs,) = (force for force in system.getForces() if isinstance(force, openmm.CustomNonbondedForce))
    assert pairs.getUseLongRangeCorrection()
    assert any(system.isVirtualSite(k) for k in range(system.getNumParticles()))


@pytest.mark.parametrize(("name", "files"), [(name, files) for name, *files in POLARISABLE.values()], ids=POLARISABLE)
def test_polarisable_force_fields_are_refused(name, files):
    topology, x = molecule(name) if name != "water" else solvated("water", "tip3p.xml")
    modeller = app.Modeller(topology, x.numpy() * unit.nanometer)
    modeller.addExtraParticles(field(*files))
    system = field(*files).createSystem(modeller.topology)
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group + 3)
    with pytest.raises(UnsupportedForceError) as refusal:
        from_openmm(system)
    named = re.match(r"(\w+) \(force (\d+), group (\d+)\) has no torch converter", str(refusal.value))
    assert named, refusal.value
    kind, index, group = named[1], int(named[2]), int(named[3])
    assert type(system.getForce(index)).__name__ == kind
    assert group == index + 3
    assert kind.startswith("Amoeba") if "amoeba" in files[0] else kind == "DrudeForce"


@pytest.mark.parametrize("file", UNREADABLE)
def test_openmm_itself_cannot_read_it(file):
    with pytest.raises(KeyError, match=UNREADABLE[file]):
        app.ForceField(file)
