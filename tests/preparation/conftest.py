"""Inputs that several tests of the preparation change and break."""

from pathlib import Path

import pytest

from boltzflow.systems import load_system

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="session")
def dipeptide():
    """The PDB file of alanine dipeptide as text."""
    return (load_system("alanine_dipeptide").folder / "topology.pdb").read_text()


@pytest.fixture(scope="session")
def records(dipeptide):
    """Its ATOM and HETATM lines."""
    return tuple(line for line in dipeptide.splitlines() if line.startswith(("ATOM", "HETATM")))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into the folder of the test, which is the working folder, and returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        if isinstance(content, list | tuple):
            content = "\n".join([*content, "END", ""])
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


def atom(line):
    """Atom name of a PDB record."""
    return line[12:16].strip()


def moved(line, x, y, z):
    """A PDB record at another place (Å)."""
    return f"{line[:30]}{x:8.3f}{y:8.3f}{z:8.3f}{line[54:]}"
