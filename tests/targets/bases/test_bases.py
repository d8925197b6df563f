"""Every base density integrates to one, and its sampler draws from it."""

import math

import pytest
import torch

from boltzflow.generators.generator import Generator
from boltzflow.run import make_rng
from boltzflow.state import State
from boltzflow.targets.bases import (
    Dirac,
    FramesBase,
    Gaussian,
    MeanFreeGaussian,
    ProductBase,
    TruncatedNormal,
    Uniform,
    VonMises,
)
from boltzflow.targets.harmonic import harmonic_pair
from boltzflow.transitions.mala import MALA


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


# one-dimensional bases with an interval that holds all but 1e-14 of the mass
ONE_DIMENSIONAL = {
    "gaussian": (Gaussian(1, mean=f64(0.7), scale=f64(1.3)), -12.0, 12.0),
    "uniform": (Uniform(1, lower=f64(-0.5), upper=f64(2.0)), -0.5, 2.0),
    "von mises, uniform": (VonMises(1).double(), -math.pi, math.pi),
    "von mises": (VonMises(1, mean=f64(2.9), concentration=f64(3.0)), -math.pi, math.pi),
    "von mises, narrow": (VonMises(1, mean=f64(-1.0), concentration=f64(400.0)), -math.pi, math.pi),
    "truncated normal": (TruncatedNormal(1, mean=f64(0.2), scale=f64(0.3)), 0.0, 1.0),
    "truncated normal, right tail": (TruncatedNormal(1, mean=f64(-2.0), scale=f64(0.1)), 0.0, 1.0),
    "truncated normal, left tail": (TruncatedNormal(1, mean=f64(3.0), scale=f64(0.1)), 0.0, 1.0),
    "truncated normal, half line": (TruncatedNormal(1, mean=f64(0.4), scale=f64(1.0), upper=math.inf), 0.0, 13.0),
    "truncated normal, whole line": (TruncatedNormal(1, lower=-math.inf, upper=math.inf).double(), -12.0, 12.0),
    "product circle": (ProductBase(["circle"], mean=f64(1.0), scale=f64(0.5)), -math.pi, math.pi),
    "product interval": (ProductBase(["interval"], mean=f64(0.9), scale=f64(0.2)), 0.0, 1.0),
    "product interval, uniform": (ProductBase(["interval"]).double(), 0.0, 1.0),
    "product line": (ProductBase(["line"], mean=f64(-1.0), scale=f64(0.5)), -8.0, 8.0),
}


def simpson(values: torch.Tensor, step: float) -> torch.Tensor:
    return step / 3 * (values[0] + values[-1] + 4 * values[1:-1:2].sum() + 2 * values[2:-1:2].sum())


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_density_integrates_to_one(name):
    base, lower, upper = ONE_DIMENSIONAL[name]
    x = torch.linspace(lower, upper, 40001, dtype=torch.float64)
    density = base.log_prob(base.state(x[:, None])).exp()
    assert base.log_z == 0.0
    assert simpson(density, (upper - lower) / 40000).item() == pytest.approx(1.0, abs=2e-9)


@pytest.mark.parametrize("name", ONE_DIMENSIONAL)
def test_samples_follow_the_density(name):
    """Kolmogorov-Smirnov: the cumulative distribution, by quadrature, maps samples to uniform ones."""
    base, lower, upper = ONE_DIMENSIONAL[name]
    n = 20_000
    (field,) = base.fields
    x = torch.linspace(lower, upper, 40001, dtype=torch.float64)
    density = base.log_prob(base.state(x[:, None])).exp()
    cdf = torch.cat([f64(0.0), torch.cumulative_trapezoid(density, x)])
    samples = base.sample(n, make_rng(1))[field][:, 0].sort().values
    assert samples.min() >= lower
    assert samples.max() <= upper
    right = torch.searchsorted(x, samples).clamp(1, len(x) - 1)
    t = (samples - x[right - 1]) / (x[right] - x[right - 1])
    u = cdf[right - 1] + t * (cdf[right] - cdf[right - 1])
    distance = (u - torch.arange(n, dtype=torch.float64) / n).abs().max()
    assert distance * math.sqrt(n) < 1.95  # p = 1e-3


@pytest.mark.parametrize("name", ["uniform", "truncated normal", "truncated normal, right tail", "product interval"])
def test_no_mass_outside_the_support(name):
    base, lower, upper = ONE_DIMENSIONAL[name]
    outside = f64(lower - 1e-9, upper + 1e-9)
    assert torch.isinf(base.reduced_energy(base.state(outside[:, None]))).all()


def test_product_base_is_the_product_of_its_coordinates():
    kinds = ["line", "circle", "interval", "circle", "interval"]
    mean, scale = f64(0.3, -2.0, 0.4, 0.0, 0.5), f64(2.0, 0.7, 0.3, math.inf, math.inf)
    base = ProductBase(kinds, mean=mean, scale=scale)
    q = base.sample(50, make_rng(0))["q"]
    parts = [ProductBase([k], mean=mean[i], scale=scale[i]) for i, k in enumerate(kinds)]
    expected = sum(p.reduced_energy(p.state(q[:, i : i + 1])) for i, p in enumerate(parts))
    torch.testing.assert_close(base.reduced_energy(base.state(q)), expected)
    assert base.fields["q"].kind == "mixed"
    assert base.measure == "torus × lebesgue"


@pytest.mark.parametrize("kind", ["circle", "interval", "line"])
def test_nan_coordinates_never_get_a_finite_energy(kind):
    base = ProductBase([kind]).double()
    assert not torch.isfinite(base.reduced_energy(base.state(f64(math.nan)[:, None]))).any()
    for other in (Uniform(1).double(), VonMises(1).double(), TruncatedNormal(1).double(), Dirac(1).double()):
        assert not torch.isfinite(other.reduced_energy(other.state(f64(math.nan)[:, None]))).any()


def test_product_base_normaliser_follows_a_loaded_state():
    """Parameters that come from a checkpoint bring their own normalisation."""
    wide = ProductBase(["interval", "line"]).double()
    narrow = ProductBase(["interval", "line"], mean=f64(0.3, 1.0), scale=f64(0.1, 0.5))
    wide.load_state_dict(narrow.state_dict())
    state = narrow.sample(5, make_rng(0))
    torch.testing.assert_close(wide.reduced_energy(state), narrow.reduced_energy(state))


def test_mean_free_gaussian_is_normalised_in_its_subspace():
    """In an orthonormal basis of the subspace it is the (N − 1) D dimensional normal."""
    n, dim, scale = 5, 3, 0.7
    base = MeanFreeGaussian(n, dim, scale=scale).double()
    assert base.dimension == (n - 1) * dim
    x = base.sample(4000, make_rng(2))["positions"]
    assert x.mean(1).abs().max() < 1e-14
    centring = torch.eye(n, dtype=torch.float64) - 1 / n
    basis = torch.linalg.eigh(centring).eigenvectors[:, 1:]
    z = torch.einsum("np,bnd->bpd", basis, x).flatten(1)
    expected = torch.distributions.Normal(f64(0.0), f64(scale)).log_prob(z).sum(1)
    torch.testing.assert_close(base.log_prob(base.state(x)), expected)
    variance = z.square().mean(1)
    assert abs(variance.mean() - scale**2) < 4 * variance.std() / math.sqrt(len(z))
    shifted = base.state(x + 5.0)
    torch.testing.assert_close(base.log_prob(shifted), expected)


def test_dirac():
    base = Dirac(2, location=f64(1.0, -1.0))
    state = base.sample(3, make_rng(0))
    assert (base.log_prob(state) == 0).all()
    assert torch.isinf(base.reduced_energy(base.state(state["x"] + 1e-12))).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(dtype):
    bases = (Gaussian(3), Uniform(3), VonMises(3, concentration=2.0), TruncatedNormal(3), Dirac(3), MeanFreeGaussian(3))
    for base in bases:
        base.to(dtype)
        state = base.sample(4, make_rng(0))
        assert state.dtype == dtype
        assert base.reduced_energy(state).dtype == torch.float64
        assert torch.isfinite(base.reduced_energy(state)).all()


def test_frames_base_draws_in_proportion_to_weights():
    target = Gaussian(1).double()
    frames = target.state(f64(0.0, 1.0, 2.0, 3.0)[:, None])
    weights = f64(0.1, 0.0, 0.6, 0.3)
    base = FramesBase(frames, target, log_weights=weights.log())
    n = 20_000
    state = base.sample(n, make_rng(3))
    counts = torch.bincount(state["frame"], minlength=4) / n
    assert counts[1] == 0
    assert ((counts - weights).abs() <= 4 * (weights * (1 - weights) / n).sqrt()).all()
    torch.testing.assert_close(state["x"][:, 0], state["frame"].double())
    torch.testing.assert_close(base.reduced_energy(state), target.reduced_energy(state))
    assert base.log_z is None
    with pytest.raises(ValueError, match="log Z is unknown"):
        base.log_prob(state)
    assert not list(base.children())
    assert not base.state_dict()


def test_frames_base_keeps_its_own_context():
    class Tempered(Gaussian):
        def reduced_energy(self, state, context=None):
            return super().reduced_energy(state) * 300.0 / (context or {"temperature": 300.0})["temperature"]

    target = Tempered(1).double()
    base = FramesBase(target.sample(8, make_rng(0)), target, context={"temperature": 600.0})
    state = base.sample(8, make_rng(1))
    expected = target.reduced_energy(state, {"temperature": 600.0})
    torch.testing.assert_close(base.reduced_energy(state, {"temperature": 300.0}), expected)
    energy, _ = base.energy_and_force(state, {"temperature": 300.0})
    torch.testing.assert_close(energy, expected)


def test_bad_parameters_are_named():
    with pytest.raises(ValueError, match="Gaussian scale: expected positive"):
        Gaussian(2, scale=0.0)
    with pytest.raises(ValueError, match="broadcasts to"):
        Gaussian(2, mean=torch.zeros(3))
    with pytest.raises(ValueError, match="upper − lower"):
        Uniform(2, lower=1.0, upper=1.0)
    with pytest.raises(ValueError, match="30 scales"):
        TruncatedNormal(1, mean=-50.0, scale=1.0)
    with pytest.raises(ValueError, match=r"kinds.*\['sphere'\]"):
        ProductBase(["line", "sphere"])
    with pytest.raises(ValueError, match="finite values on lines"):
        ProductBase(["line"], scale=math.inf)
    target = Gaussian(1).double()
    with pytest.raises(ValueError, match="1 of 2 frames hold non-finite"):
        FramesBase(target.state(f64(0.0, math.nan)[:, None]), target)
    with pytest.raises(ValueError, match="lack fields"):
        FramesBase(State({"y": torch.zeros(1, 1)}, {"y": target.fields["x"]}), target)
    with pytest.raises(ValueError, match=r"groups: expected integers >= 0 of shape \(2,\), got .* of shape \(3,\)"):
        FramesBase(target.state(f64(0.0, 1.0)[:, None]), target, groups=torch.arange(3))


def test_log_z_from_frames_is_a_free_energy_difference():
    """With the frames of one harmonic system as base, log Z of the other is −ΔF between them, error bar included."""
    first, second = (h.double() for h in harmonic_pair(2, displacement=1.0))
    base = FramesBase(first.sample(1500, make_rng(8)), first)
    generator = Generator(base, [MALA(0.1, level=k / 4).double() for k in range(1, 5)])
    ensemble = generator.sample(3000, second, seed=0)
    assert ensemble.normalisation.startswith("relative")
    # rows that share a frame share a group
    assert 1000 < len(set(ensemble.groups.tolist())) < 1500
    estimate = ensemble.log_z()
    assert 0.005 < estimate.error < 0.1
    assert abs(estimate.value - (second.log_z - first.log_z)) < 4 * estimate.error
