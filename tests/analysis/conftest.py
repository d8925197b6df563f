"""A small molecule with all its torsions, and harmonic ensembles with known free energies."""

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from boltzflow.ensemble import Ensemble, Provenance

TOPOLOGY = Path(__file__).parents[2] / "systems" / "alanine_dipeptide" / "topology.pdb"


@pytest.fixture(scope="session")
def dipeptide():
    """200 distorted structures of alanine dipeptide with weights."""
    frame = mdtraj.load(str(TOPOLOGY))
    rng = np.random.default_rng(0)
    positions = frame.xyz + 0.03 * rng.normal(size=(200, frame.n_atoms, 3))
    return Ensemble(
        samples={"positions": positions.astype(np.float32)},
        log_weights=0.5 * rng.normal(size=200),
        reduced_energies=rng.normal(size=200),
        target="alanine_dipeptide",
        base="internal",
        log_z_base=1.0,
        topology=frame.topology,
        context={"temperature": 300.0},
        provenance=Provenance(
            seed=1, ledger={"energy": {"a": 200}, "force": {"a": 3}}, extra={"system": "alanine_dipeptide"}
        ),
    )


@pytest.fixture
def gaussian():
    """Make samples of N(0, s²) weighted to N(0, 1), i.e. u = x²/2."""

    def make(n, seed, *, spread=1.3, **changes):
        x = np.random.default_rng(seed).normal(0, spread, size=(n, 1))
        u = 0.5 * x[:, 0] ** 2
        arguments = {
            "samples": {"x": x},
            "log_weights": 0.5 * (x[:, 0] / spread) ** 2 - u,
            "reduced_energies": u,
            "target": "harmonic",
            "base": "wide",
            "log_z_base": float(0.5 * np.log(2 * np.pi) + np.log(spread)),
        }
        return Ensemble(**{**arguments, **changes})

    return make
