"""Ensemble files: mdtraj opens them, foreign and damaged ones are refused with a remedy, writing is atomic."""

import h5py
import mdtraj
import numpy as np
import openmm.app
import pytest

from boltzflow.ensemble import Ensemble
from boltzflow.errors import FormatError
from boltzflow.io import hdf5
from boltzflow.io.topology import topology_from_json, topology_to_json

PDB = """\
ATOM      1  H1  ACE A   1       2.000   1.000  -0.000  1.00  0.00           H
ATOM      2  CH3 ACE A   1       2.000   2.090   0.000  1.00  0.00           C
ATOM      3  H2  ACE A   1       1.486   2.454   0.890  1.00  0.00           H
ATOM      4  H3  ACE A   1       1.486   2.454  -0.890  1.00  0.00           H
ATOM      5  C   ACE A   1       3.427   2.641  -0.000  1.00  0.00           C
ATOM      6  O   ACE A   1       4.391   1.877  -0.000  1.00  0.00           O
ATOM      7  N   NME A   2       3.555   3.970  -0.000  1.00  0.00           N
ATOM      8  H   NME A   2       2.733   4.556  -0.000  1.00  0.00           H
ATOM      9  C   NME A   2       4.853   4.614  -0.000  1.00  0.00           C
END
"""


@pytest.fixture(scope="module")
def topology(tmp_path_factory):
    path = tmp_path_factory.mktemp("pdb") / "a.pdb"
    path.write_text(PDB)
    return openmm.app.PDBFile(str(path)).topology


def molecule(topology, dtype=np.float32, n=20):
    rng = np.random.default_rng(0)
    return Ensemble(
        samples={"positions": rng.normal(size=(n, 9, 3)).astype(dtype)},
        log_weights=rng.normal(size=n),
        reduced_energies=rng.normal(size=n),
        target="molecule",
        topology=topology,
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mdtraj_opens_the_file(tmp_path, topology, dtype):
    pytest.importorskip("tables", reason="mdtraj reads HDF5 with PyTables")
    ensemble = molecule(topology, dtype)
    ensemble.save(tmp_path / "e.h5")
    trajectory = mdtraj.load(str(tmp_path / "e.h5"))
    assert np.array_equal(trajectory.xyz, ensemble.samples["positions"].astype(np.float32))
    assert trajectory.topology == mdtraj.Topology.from_openmm(topology)
    part = mdtraj.load(str(tmp_path / "e.h5"), stride=5, atom_indices=[1, 4])
    assert part.xyz.shape == (4, 2, 3)
    assert Ensemble.load(tmp_path / "e.h5").samples["positions"].dtype == dtype


def test_file_follows_the_mdtraj_convention(tmp_path, topology):
    molecule(topology).save(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5") as file:
        assert (file.attrs["conventions"], file.attrs["conventionVersion"]) == ("Pande", "1.1")
        assert file.attrs["program"] == "boltzflow"
        assert file["coordinates"].dtype == np.float32
        assert file["coordinates"].attrs["units"] == "nanometers"
        # the exact samples are the coordinates: stored once
        assert file["coordinates"] == file["samples/positions"]
        assert file["log_weights"].dtype == np.float64


def test_trajectory_of_an_ensemble(topology):
    ensemble = molecule(topology)
    trajectory = ensemble.to_mdtraj()
    assert trajectory.n_frames == 20
    assert trajectory.topology.atom(1).name == "CH3"
    bare = Ensemble(samples={"x": np.zeros(3)}, log_weights=np.zeros(3), reduced_energies=np.zeros(3), target="t")
    with pytest.raises(ValueError, match="needs a topology"):
        bare.to_mdtraj()


@pytest.mark.parametrize("kind", ["openmm", "mdtraj", "pdb", "json"])
def test_topologies_of_every_kind_are_the_same(topology, kind):
    reference = mdtraj.Topology.from_openmm(topology)
    source = {
        "openmm": topology,
        "mdtraj": reference,
        "pdb": PDB,
        "json": topology_to_json(topology),
    }[kind]
    back = topology_from_json(topology_to_json(source))
    assert back == reference
    assert back.n_bonds == reference.n_bonds > 0
    assert [a.element.symbol for a in back.atoms] == [a.element.symbol for a in reference.atoms]
    assert [r.resSeq for r in back.residues] == [1, 2]


def test_wrong_topologies_are_named():
    with pytest.raises(TypeError, match="got list"):
        topology_to_json([1])
    with pytest.raises(ValueError, match="MDTraj-HDF5"):
        topology_from_json('{"chains": 3}')


def test_a_trajectory_from_elsewhere_says_how_to_import_it(tmp_path, topology):
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["coordinates"] = np.zeros((3, 9, 3), dtype=np.float32)
        file.attrs["conventions"] = "Pande"
    with pytest.raises(FormatError, match=r"missing \['samples', 'log_weights', 'reduced_energies'\].*mdtraj\.load"):
        Ensemble.load(tmp_path / "t.h5")


def test_other_files_are_refused(tmp_path, topology):
    with pytest.raises(FileNotFoundError, match="no such ensemble"):
        Ensemble.load(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(FormatError, match="cannot be read"):
        Ensemble.load(tmp_path / "text.h5")
    molecule(topology).save(tmp_path / "later.h5")
    with h5py.File(tmp_path / "later.h5", "r+") as file:
        file.attrs["format_version"] = 99
    with pytest.raises(FormatError, match="format version 99"):
        Ensemble.load(tmp_path / "later.h5")


@pytest.mark.parametrize("lost", ["log_weights", "reduced_energies", "samples", "tables"])
def test_a_file_that_lost_a_part_is_damaged(tmp_path, topology, lost):
    molecule(topology).save(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        del file[lost]
    with pytest.raises(FormatError, match=r"damaged"):
        Ensemble.load(tmp_path / "e.h5")


def test_a_file_that_was_cut_short_is_damaged(tmp_path, topology):
    molecule(topology, n=2000).save(tmp_path / "e.h5")
    data = (tmp_path / "e.h5").read_bytes()
    (tmp_path / "e.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="cut short"):
        Ensemble.load(tmp_path / "e.h5")


def test_a_failed_save_keeps_the_previous_file(tmp_path, topology, monkeypatch):
    first = molecule(topology)
    first.save(tmp_path / "e.h5")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hdf5, "_write_trajectory", full)
    with pytest.raises(OSError, match="No space left"):
        molecule(topology, n=5).save(tmp_path / "e.h5")
    assert len(Ensemble.load(tmp_path / "e.h5")) == 20
    assert [p.name for p in tmp_path.iterdir()] == ["e.h5"]
