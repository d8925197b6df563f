"""States of an ensemble near given structures: matching of atoms, overlap, refusals; states that no chain joined."""

import mdtraj
import numpy as np
import pytest

from boltzflow.analysis.free_energy import delta_f, state_difference, states_report
from boltzflow.analysis.observables import CollectiveVariable, rmsd
from boltzflow.analysis.states import inside, read_structure, rmsd_atoms, structure_states
from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError, LowOverlapError


@pytest.fixture(scope="module")
def two_shapes(dipeptide, tmp_path_factory):
    """400 noisy copies of two shapes, 3 : 1, with files of both shapes."""
    folder = tmp_path_factory.mktemp("structures")
    frame = dipeptide.to_mdtraj()[0]
    shapes = np.stack([frame.xyz[0], frame.xyz[0] * np.array([1.0, 1.0, 0.3])])
    rng = np.random.default_rng(1)
    which = np.arange(400) % 4 == 3
    positions = shapes[which.astype(int)] + 0.005 * rng.normal(size=(400, 22, 3))
    ensemble = Ensemble(
        samples={"positions": positions.astype(np.float32)},
        log_weights=np.zeros(400),
        reduced_energies=np.zeros(400),
        target="shapes",
        topology=frame.topology,
    )
    for name, xyz in zip("AB", shapes, strict=True):
        mdtraj.Trajectory(xyz[None], frame.topology).save_pdb(str(folder / f"{name}.pdb"))
    return ensemble, folder, which


def atom_lines(path):
    return [line for line in path.read_text().splitlines() if line.startswith(("ATOM", "HETATM"))]


def test_two_structures_and_one_against_the_rest(two_shapes):
    ensemble, folder, which = two_shapes
    states = structure_states(ensemble, [folder / "A.pdb", folder / "B.pdb"], radius=0.02)
    assert states.names == ("A.pdb", "B.pdb")
    assert np.array_equal(states.members[0], ~which)
    assert np.array_equal(states.members[1], which)
    found = state_difference(ensemble, states)
    assert found.value == pytest.approx(-np.log(3))
    alone = structure_states(ensemble, [folder / "B.pdb"], radius=0.02)
    assert alone.names == ("B.pdb", "rest")
    assert state_difference(ensemble, alone).value == pytest.approx(np.log(3))
    report = states_report(ensemble, alone)
    assert [row["n"] for row in report["states"]] == [100, 300]
    assert report["cv"] == "RMSD of heavy atoms"


def test_overlapping_structures_need_an_assignment(two_shapes):
    ensemble, folder, which = two_shapes
    files = [folder / "A.pdb", folder / "B.pdb"]
    with pytest.raises(ValueError, match=r"400 of 400 samples lie within 0.5 nm of both A.pdb and B.pdb.*--nearest"):
        structure_states(ensemble, files, radius=0.5)
    for radius in (0.5, None):
        states = structure_states(ensemble, files, radius=radius, nearest=True)
        assert np.array_equal(states.members[0], ~which)
        assert np.array_equal(states.members[1], which)
    with pytest.raises(ValueError, match="give the radius"):
        structure_states(ensemble, files)
    with pytest.raises(ValueError, match="radius > 0"):
        structure_states(ensemble, files, radius=-1.0)


def test_an_empty_state_is_an_error(two_shapes, tmp_path):
    ensemble, folder, _ = two_shapes
    far = mdtraj.load(str(folder / "A.pdb"))
    far.xyz *= 2
    far.save_pdb(str(tmp_path / "far.pdb"))
    with pytest.raises(LowOverlapError, match=r"state far.pdb .* holds 0 of 400 samples and no weight"):
        state_difference(ensemble, structure_states(ensemble, [tmp_path / "far.pdb"], radius=0.05))


@pytest.mark.parametrize("what", ["reordered", "heavy only", "renumbered", "with water"])
def test_atoms_are_matched_by_residue_and_name(two_shapes, tmp_path, what):
    ensemble, folder, _ = two_shapes
    lines = atom_lines(folder / "A.pdb")
    if what == "reordered":
        by_residue = {}
        for line in lines:
            by_residue.setdefault(line[17:26], []).append(line)
        lines = [line for group in by_residue.values() for line in reversed(group)]
    elif what == "heavy only":
        lines = [line for line in lines if line[76:78].strip() != "H"]
    elif what == "renumbered":
        lines = [f"{line[:22]}{int(line[22:26]) + 40:4d}{line[26:]}" for line in lines]
    else:
        lines.append(lines[-1][:12] + " O   HOH A  99" + lines[-1][26:76] + " O  ")
    (tmp_path / "A.pdb").write_text("\n".join(lines) + "\nEND\n")
    plain = structure_states(ensemble, [folder / "A.pdb"], radius=0.02)
    other = structure_states(ensemble, [tmp_path / "A.pdb"], radius=0.02)
    assert np.array_equal(plain.members[0], other.members[0])


def test_positions_of_a_structure_are_in_the_order_of_the_topology(two_shapes):
    ensemble, folder, _ = two_shapes
    heavy = rmsd_atoms(ensemble.topology, "heavy")
    found = read_structure(folder / "A.pdb", ensemble.topology, atoms=heavy)
    assert found[heavy] == pytest.approx(mdtraj.load(str(folder / "A.pdb")).xyz[0, heavy])
    assert np.isnan(np.delete(found, heavy, axis=0)).all()
    assert np.isfinite(rmsd(ensemble, found, atoms=heavy.tolist())).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda lines: [s.replace("ALA", "GLY") for s in lines], "residue 2 is GLY2, but that of the ensemble is ALA2"),
        (lambda lines: [s for s in lines if " NME " not in s], "has 2 residues .* the ensemble has 3"),
        (
            lambda lines: [s for s in lines if s[12:16].strip() != "CB"],
            "1 of the 10 atoms .* ALA2-CB; ALA2 has N",
        ),
        (lambda lines: ["MODEL 1", *lines, "ENDMDL", "MODEL 2", *lines, "ENDMDL"], "holds 2 structures"),
        (lambda lines: ["nothing"], "holds no atoms"),
    ],
)
def test_structures_of_another_molecule_are_refused(two_shapes, tmp_path, change, match):
    ensemble, folder, _ = two_shapes
    (tmp_path / "X.pdb").write_text("\n".join(change(atom_lines(folder / "A.pdb"))) + "\nEND\n")
    with pytest.raises(FormatError, match=match):
        structure_states(ensemble, [tmp_path / "X.pdb"], radius=0.1)
    with pytest.raises(FileNotFoundError, match="no such file"):
        structure_states(ensemble, [tmp_path / "nowhere.pdb"], radius=0.1)


def test_what_an_rmsd_compares(dipeptide):
    elements = [atom.element.symbol for atom in dipeptide.topology.atoms]
    assert rmsd_atoms(dipeptide.topology, "heavy").tolist() == [k for k, e in enumerate(elements) if e != "H"]
    assert len(rmsd_atoms(dipeptide.topology, "all")) == 22
    with pytest.raises(ValueError, match="has 1 of them, and at least 3"):
        rmsd_atoms(dipeptide.topology, "CA")


def chains(members, *, log_weights=None):
    """An ensemble of chains, one row of `members` each, that says in which state every frame is."""
    x = np.asarray(members, dtype=float)
    n_chains, n_frames = x.shape
    return Ensemble(
        samples={"x": x.ravel()},
        log_weights=np.zeros(x.size) if log_weights is None else log_weights,
        reduced_energies=np.zeros(x.size),
        target="md",
        chain=np.repeat(np.arange(n_chains), n_frames),
        frame=np.tile(np.arange(n_frames), n_chains),
    )


def test_states_that_no_chain_joined_are_an_error():
    stuck = np.repeat([[0], [0], [1], [1]], 50, axis=1)
    states = [(-0.5, 0.5), (0.5, 1.5)]
    with pytest.raises(
        LowOverlapError, match=r"disconnected: of 4 chains 2 were in the first and 2 in the second.*hotter"
    ):
        delta_f(chains(stuck), "x", states=states)
    stuck[0, 20:30] = 1
    found = delta_f(chains(stuck), "x", states=states)
    assert np.isfinite(found.value)
    # a frame of weight zero joins nothing
    joined_by_nothing = np.zeros(200)
    joined_by_nothing[20:30] = -np.inf
    with pytest.raises(LowOverlapError, match="disconnected"):
        delta_f(chains(stuck, log_weights=joined_by_nothing), "x", states=states)


def test_few_chains_in_both_states_are_said():
    x = np.repeat([[0]] * 6 + [[1]] * 6, 50, axis=1)
    x[0, 25:] = 1
    found = delta_f(chains(x), "x", states=[(0.5, 1.5)])
    assert any("of 6 chains" in text or "of 7 chains" in text for text in found.warnings)
    busy = np.random.default_rng(0).integers(0, 2, size=(12, 50))
    assert not any("chains" in text for text in delta_f(chains(busy), "x", states=[(0.5, 1.5)]).warnings)


def test_an_interval_as_a_mask():
    angle = CollectiveVariable("a", np.radians([-175.0, 0.0, 175.0]), "rad", periodic=True)
    assert inside(angle, *np.radians([170.0, -170.0])).tolist() == [True, False, True]
