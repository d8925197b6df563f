"""Families of a resampled population: their sizes, with and without weights, and where they are recorded."""

import numpy as np
import pytest

from boltzflow.ensemble import Ensemble
from boltzflow.generators import smc
from boltzflow.io.provenance import Provenance
from boltzflow.statistics import family_statistics
from boltzflow.targets import DoubleWell, Gaussian
from boltzflow.transitions import RandomWalkMetropolis


def test_equal_families_count_one_and_a_single_family_counts_all():
    even = family_statistics(np.arange(50))
    assert (even.n, even.n_families) == (50, 50)
    assert (even.rho_t, even.rho_s, even.largest) == pytest.approx((1.0, 1.0, 0.02))
    one = family_statistics(np.full(50, 7))
    assert (one.n_families, one.rho_t, one.rho_s, one.largest) == pytest.approx((1, 50.0, 50.0, 1.0))


def test_families_are_weighed():
    found = family_statistics([3, 3, 5, 9], log_weights=np.log([0.1, 0.2, 0.3, 0.4]), n=8)
    share = np.array([0.3, 0.3, 0.4])
    assert found.rho_t == pytest.approx(8 * np.sum(share**2))
    assert found.rho_s == pytest.approx(8 * np.exp(np.sum(share * np.log(share))))
    without = family_statistics([0, 1, 1], log_weights=[0.0, -np.inf, -np.inf])
    assert (without.n_families, without.largest) == (1, 1.0)


def test_every_population_records_its_families(tmp_path):
    wells = Gaussian(2, scale=2.0).double(), DoubleWell().double()
    generator = smc(wells[0], RandomWalkMetropolis(0.5), [0.3, 0.6, 1.0], threshold=1.0)
    ensemble = generator.sample(150, wells[1], seed=1, batch_size=50)
    found = ensemble.provenance.extra["populations"]
    assert [f["n"] for f in found] == [50, 50, 50]
    w = np.exp(ensemble.log_weights[:50] - ensemble.log_weights[:50].max())
    first = np.bincount(ensemble.groups[:50], weights=w / w.sum())
    assert found[0]["rho_t"] == pytest.approx(50 * np.sum(first**2))
    assert 1.0 < found[0]["rho_s"] <= found[0]["rho_t"] < 50
    ensemble.save(tmp_path / "e.h5")
    assert Ensemble.load(tmp_path / "e.h5").provenance.extra["populations"] == found
    assert "populations" not in Provenance.merged([Provenance(), Provenance()]).extra
