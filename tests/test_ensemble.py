"""Ensemble: what it accepts, estimates with the right normalisation, resampling, merging, files."""

import numpy as np
import pytest
import torch

from boltzflow.ensemble import Ensemble, Provenance
from boltzflow.errors import FormatError, NonFiniteEnergyError, NormalisationError, UnknownNameError
from boltzflow.state import Space

STIFFNESS = 2.0
LOG_Z_BASE = 0.5 * np.log(2 * np.pi)


def harmonic(n=2000, *, seed=0, **changes):
    """Samples of exp(−x²/2) weighted to exp(−k x²/2)."""
    x = np.random.default_rng(seed).normal(size=(n, 1))
    u = 0.5 * STIFFNESS * x[:, 0] ** 2
    arguments = {
        "samples": {"x": x},
        "log_weights": 0.5 * x[:, 0] ** 2 - u,
        "reduced_energies": u,
        "target": "harmonic",
        "base": "gaussian",
        "log_z_base": LOG_Z_BASE,
        "context": {"temperature": 300.0},
        "provenance": Provenance(seed=seed, ledger={"energy": {"harmonic": n}, "force": {}}, seconds=1.5),
    }
    return Ensemble(**{**arguments, **changes})


def test_estimates_of_a_harmonic_pair():
    ensemble = harmonic(20_000)
    assert abs(ensemble.log_z().z_score(0.5 * np.log(2 * np.pi / STIFFNESS))) < 4
    assert abs(ensemble.expectation(lambda s: s["x"][:, 0] ** 2).z_score(1 / STIFFNESS)) < 4
    assert abs(ensemble.expectation("x").z_score(0.0)) < 4
    assert abs(ensemble.mean_reduced_energy().z_score(0.5)) < 4
    # E_q[log w] = −(k − 1)/2, below log Z by the KL divergence
    assert abs(ensemble.elbo().z_score(LOG_Z_BASE - 0.5 * (STIFFNESS - 1))) < 4
    assert ensemble.ess() == pytest.approx(len(ensemble) * ensemble.ess_fraction())
    assert ensemble.ess_fraction() == pytest.approx(np.sqrt(2 * STIFFNESS - 1) / STIFFNESS, rel=0.03)
    assert ensemble.pareto_k() < 0.3
    assert ensemble.temperature == 300.0


def test_normalisation_is_said_or_refused():
    relative = harmonic(log_z_base=None)
    assert relative.normalisation == "relative to gaussian"
    assert str(relative.log_z()).endswith("(relative to gaussian)")
    assert relative.log_z().value == pytest.approx(harmonic().log_z().value - LOG_Z_BASE)
    none = harmonic(log_z_base=None, base=None)
    assert none.normalisation == "none"
    for estimate in (none.log_z, none.elbo):
        with pytest.raises(NormalisationError, match="carry no normalisation"):
            estimate()
    assert harmonic(normalisation="none").normalisation == "none"


@pytest.mark.parametrize("normalisation", ["absolute", "relative to other", "Absolute"])
def test_normalisation_must_fit_the_base(normalisation):
    with pytest.raises(NormalisationError, match="which allow none or relative to gaussian"):
        harmonic(log_z_base=None, normalisation=normalisation)


BAD = {
    "no rows": ({"log_weights": []}, ValueError, "n >= 1"),
    "energies of another length": (
        {"reduced_energies": np.zeros(3)},
        ValueError,
        r"reduced_energies of shape \(2000,\)",
    ),
    "samples of another length": (
        {"samples": {"x": np.zeros((3, 1))}},
        ValueError,
        r"samples\['x'\] of shape \(2000, 1\)",
    ),
    "no such space": ({"spaces": {"y": Space("line", (1,))}}, ValueError, "same names"),
    "frame without chain": ({"frame": np.arange(2000)}, ValueError, "without chain"),
    "NaN weight": ({"log_weights": np.r_[np.nan, np.zeros(1999)]}, NonFiniteEnergyError, r"1 of 2000 log-weights"),
    "infinite weight": ({"log_weights": np.r_[np.zeros(1999), np.inf]}, NonFiniteEnergyError, "first row 1999"),
    "NaN sample": (
        {"samples": {"x": np.full((2000, 1), np.nan)}},
        NonFiniteEnergyError,
        "2000 of 2000 rows have a weight but NaN",
    ),
    "infinite energy": ({"reduced_energies": np.full(2000, np.inf)}, NonFiniteEnergyError, "no finite energy"),
    "context of functions": ({"context": {"f": print}}, TypeError, "context"),
    "groups of floats": ({"groups": np.zeros(3, dtype=int)}, ValueError, "one integer per row"),
}


@pytest.mark.parametrize(("changes", "error", "match"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_named(changes, error, match):
    spaces = {"x": Space("line", (1,))}
    with pytest.raises(error, match=match):
        harmonic(**{"spaces": spaces, **changes})


def test_rows_of_weight_zero_may_hold_anything_and_count():
    e = harmonic(1000)
    x, log_w, u = e.samples["x"].copy(), e.log_weights.copy(), e.reduced_energies.copy()
    x[:100], log_w[:100], u[:100] = np.nan, -np.inf, np.inf
    u[:10] = np.nan
    broken = harmonic(1000, samples={"x": x}, log_weights=log_w, reduced_energies=u)
    rest = e.select(slice(100, None))
    assert broken.log_z().value == pytest.approx(rest.log_z().value + np.log(0.9))
    assert broken.expectation("x").value == pytest.approx(rest.expectation("x").value)
    assert broken.ess() == pytest.approx(rest.ess())
    assert np.isfinite(broken.resample(500, seed=1).samples["x"]).all()


def test_an_ensemble_of_zero_weights_exists_but_estimates_nothing():
    e = harmonic(10, log_weights=np.full(10, -np.inf))
    assert "all weights zero" in repr(e)
    for estimate in (e.ess, e.pareto_k, e.log_z, e.mean_reduced_energy, lambda: e.resample(5)):
        with pytest.raises(NonFiniteEnergyError, match="all 10 are -inf"):
            estimate()


def test_repr_shows_the_essentials():
    text = repr(harmonic())
    for part in ("n=2000", "'harmonic'", "ESS", "%", "absolute", "x (1,)"):
        assert part in text


def test_observables_are_checked():
    e = harmonic()
    with pytest.raises(UnknownNameError, match="no field 'y'"):
        e.expectation("y")
    with pytest.raises(ValueError, match="one number per row"):
        e.expectation(lambda s: s["x"].mean())
    two = harmonic(samples={"x": np.zeros((2000, 2))})
    with pytest.raises(ValueError, match="one number per row"):
        two.expectation("x")


def test_groups_enter_every_error():
    e = harmonic(400)
    copies = harmonic(
        2000,
        samples={"x": np.repeat(e.samples["x"], 5, axis=0)},
        log_weights=np.repeat(e.log_weights, 5),
        reduced_energies=np.repeat(e.reduced_energies, 5),
        groups=np.repeat(np.arange(400), 5),
    )
    for name in ("log_z", "elbo", "mean_reduced_energy"):
        assert getattr(copies, name)().error == pytest.approx(getattr(e, name)().error, rel=1e-9)


def test_resampling_keeps_the_mean_weight_and_the_parents():
    e = harmonic(3000)
    drawn = e.resample(1000, seed=3)
    assert np.ptp(drawn.log_weights) == 0
    assert drawn.log_z().value == pytest.approx(e.log_z().value, abs=1e-12)
    # equal weights, and still an honest error: that of the parents plus that of drawing
    assert e.log_z().error < drawn.log_z().error < np.hypot(e.log_z().error, 1.5 / np.sqrt(1000))
    assert abs(drawn.expectation("x").z_score(0.0)) < 4
    assert drawn.expectation("x").error > e.expectation("x").error
    assert len(np.unique(drawn.groups)) <= 1000
    assert len(drawn.group_sizes) == 3000
    assert drawn.provenance.extra["resampled_from"] == 3000
    assert np.array_equal(drawn.samples["x"], e.resample(1000, seed=3).samples["x"])
    with pytest.raises(ValueError, match="n >= 1"):
        e.resample(0)


def test_resampling_populations_keeps_the_error_between_them():
    ids = np.repeat(np.arange(10), 200)
    e = harmonic(2000, groups=ids, log_weights=0.2 * np.random.default_rng(1).normal(size=10)[ids])
    drawn = e.resample(2000, seed=0)
    assert drawn.log_z().error == pytest.approx(e.log_z().error, rel=0.1)


def test_merging_shards_adds_rows_costs_and_groups():
    a, b = harmonic(500, seed=1), harmonic(700, seed=2)
    both = Ensemble.merge([a, b])
    assert len(both) == 1200
    assert np.array_equal(both.log_weights, np.r_[a.log_weights, b.log_weights])
    assert len(both.grouping) == 1200
    assert both.provenance.seed == [1, 2]
    assert both.provenance.n_energy == 1200
    assert both.provenance.seconds == 3.0
    assert len(Ensemble.merge([a])) == 500


def test_shards_are_new_groups_unless_they_share_them():
    ids = np.arange(500) % 50
    new = Ensemble.merge([harmonic(500, seed=s, groups=ids) for s in (1, 2)])
    assert len(new.grouping) == 100
    shared = Ensemble.merge([harmonic(500, seed=s, groups=ids, groups_shared=True) for s in (1, 2)])
    assert len(shared.grouping) == 50


def test_shared_groups_add_the_rows_with_which_they_started():
    """Populations from the same base frames: frame 2 died out in the first, frame 3 is in the second only."""
    first = harmonic(4, seed=1, groups=[0, 0, 1, 1], group_sizes=[1.0, 2.0, 1.0], groups_shared=True)
    second = harmonic(2, seed=2, groups=[3, 3], group_sizes=[0.0, 1.0, 0.0, 1.0], groups_shared=True)
    merged = Ensemble.merge([first, second])
    assert merged.groups.tolist() == [0, 0, 1, 1, 3, 3]
    assert merged.group_sizes.tolist() == [1.0, 3.0, 1.0, 1.0]
    drawn = harmonic(500, groups=np.arange(500) % 50 + 7, groups_shared=True).resample(100, seed=0)
    assert drawn.groups.min() >= 7
    assert len(drawn.grouping) == 50


def test_merging_resampled_shards_weighs_their_groups_by_rows():
    parts = [harmonic(2000, seed=s).resample(100 * (s + 1), seed=s) for s in (0, 1)]
    merged = Ensemble.merge(parts)
    sizes = merged.group_sizes
    assert sizes[:2000].sum() == pytest.approx(100)
    assert sizes[2000:].sum() == pytest.approx(200)


DIFFERENT = {
    "target": {"target": "other"},
    "context": {"context": {"temperature": 310.0}},
    "normalisation": {"log_z_base": None},
    "base": {"base": "uniform"},
    "log_z_base": {"log_z_base": 0.0},
    "fields": {"samples": {"y": np.zeros((2000, 1))}},
    "chains": {"chain": np.zeros(2000, dtype=int)},
    "groups_shared": {"groups_shared": True},
}


@pytest.mark.parametrize(("name", "changes"), DIFFERENT.items(), ids=DIFFERENT.keys())
def test_merging_what_does_not_belong_together_is_refused(name, changes):
    with pytest.raises(ValueError, match=f"ensemble 2 differs from the first in .*{name}"):
        Ensemble.merge([harmonic(), harmonic(**changes)])


def test_merged_chains_stay_apart():
    chain, frame = np.divmod(np.arange(2000), 1000)
    merged = Ensemble.merge([harmonic(seed=s, chain=chain, frame=frame) for s in (1, 2)])
    assert [len(rows) for rows in merged.grouping.chains] == [1000] * 4
    assert "inside 4 chain(s)" in merged.log_z().method
    with pytest.raises(ValueError, match="at least one"):
        Ensemble.merge([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_keep_dtype_and_spaces(dtype):
    angles = torch.rand(20, 4, dtype=dtype)
    spins = torch.arange(40).reshape(20, 2) % 2
    spaces = {"angles": Space("circle", (4,)), "spins": Space("integer", (2,))}
    e = harmonic(20, samples={"angles": angles, "spins": spins}, spaces=spaces)
    state = e.to_state()
    assert state.spaces == spaces
    assert torch.equal(state["angles"], angles)
    assert state["spins"].dtype == torch.int64
    assert e.to_state(dtype=torch.float64).dtype == torch.float64
    assert e.log_weights.dtype == e.reduced_energies.dtype == np.float64


def test_file_holds_everything(tmp_path):
    chain, frame = np.divmod(np.arange(2000), 1000)
    provenance = Provenance(
        seed=5, device="cuda (H)", dtype="float32", n_failed=2, interrupted=True, extra={"system": "s"}
    )
    e = harmonic(
        chain=chain,
        frame=frame,
        groups=np.arange(2000) % 7,
        group_sizes=np.arange(1, 8),
        context={"temperature": torch.tensor(300.0, dtype=torch.float64), "lambda": [0.0, 0.5]},
        provenance=provenance,
        spaces={"x": Space("circle", (1,), 1)},
    )
    e.save(tmp_path / "new folder" / "e.h5")
    back = Ensemble.load(tmp_path / "new folder" / "e.h5")
    assert not e._differences(back)
    for name in ("log_weights", "reduced_energies", "groups", "group_sizes", "chain", "frame"):
        assert np.array_equal(getattr(e, name), getattr(back, name)), name
    assert np.array_equal(e.samples["x"], back.samples["x"])
    assert back.provenance == provenance
    assert back.log_z() == e.log_z()
    assert back.context == {"temperature": 300.0, "lambda": [0.0, 0.5]}


def test_rows_of_weight_zero_survive_a_file(tmp_path):
    e = harmonic(10, log_weights=np.r_[-np.inf, np.zeros(9)], reduced_energies=np.r_[np.inf, np.zeros(9)])
    e.save(tmp_path / "e.h5")
    assert Ensemble.load(tmp_path / "e.h5").log_weights[0] == -np.inf


def test_merged_provenance_of_one_seed_is_that_seed():
    merged = Provenance.merged([Provenance(seed=3, n_failed=1), Provenance(seed=3, n_failed=2, interrupted=True)])
    assert (merged.seed, merged.n_failed, merged.interrupted) == (3, 3, True)
    later = Provenance.from_dict({**merged.as_dict(), "novelty": 1})
    assert later.extra == {"novelty": 1}


def test_a_file_with_a_broken_weight_is_damaged(tmp_path):
    import h5py

    harmonic(10).save(tmp_path / "e.h5")
    with h5py.File(tmp_path / "e.h5", "r+") as file:
        file["log_weights"][3] = np.nan
    with pytest.raises(FormatError, match="1 of 10 log-weights are NaN"):
        Ensemble.load(tmp_path / "e.h5")
