import pickle

import pytest
import torch

from boltzflow.run import Run, make_rng
from boltzflow.state import Space, State
from boltzflow.transitions import compiled
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.coupling import SplineCoupling, alternating_masks
from boltzflow.transitions.elementwise import ElementwiseSpline

PI = torch.pi
MIXED = ["circle", "line", "interval", "circle", "line", "interval", "circle"]
MASK = torch.tensor([True, False, True, False, True, False, True])


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(compiled.compiler, "off", True)


@pytest.fixture
def run():
    return Run(make_rng(0), context={"beta": torch.tensor([0.5, 1.5])})


def state_of(kinds, n=20, *, seed=0, dtype=torch.float64):
    u = torch.rand(n, len(kinds), generator=make_rng(seed), dtype=torch.float64)
    span = {"circle": (-PI, 2 * PI), "line": (-7, 14), "interval": (0, 1)}
    q = torch.stack([span[k][0] + span[k][1] * u[:, i] for i, k in enumerate(kinds)], 1).to(dtype)
    return State({"q": q}, {"q": Space("mixed", (len(kinds),))})


def perturbed(module, *, seed=1, dtype=torch.float64):
    """A module away from its identity initialisation, with raw parameters of order one half."""
    module = module.to(dtype)
    rng = make_rng(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.5 / p.shape[-1] ** 0.5 * torch.randn(p.shape, generator=rng, dtype=torch.float64).to(dtype)
    return module


ZOO = {
    **{
        f"spline on {kind}": (lambda kind=kind: SplineCoupling([kind] * 4, MASK[:4]), [kind] * 4)
        for kind in ("circle", "line", "interval")
    },
    "spline, mixed": (lambda: SplineCoupling(MIXED, MASK, bins=4, harmonics=2), MIXED),
    "spline, residual": (lambda: SplineCoupling(MIXED, ~MASK, residual=True), MIXED),
    "spline, context": (lambda: SplineCoupling(MIXED, MASK, context={"beta": 2}, hidden=(16,)), MIXED),
    "spline, plain operations": (lambda: SplineCoupling(MIXED, MASK, fused=False), MIXED),
    "elementwise": (lambda: ElementwiseSpline(MIXED, bins=12), MIXED),
    "elementwise, one bin": (lambda: ElementwiseSpline(MIXED, bins=1), MIXED),
    "elementwise, plain operations": (lambda: ElementwiseSpline(MIXED, bins=5, fused=False), MIXED),
    "affine coupling": (
        lambda: AffineCoupling(["line", "circle", "line"], torch.tensor([True, False, True])),
        ["line", "circle", "line"],
    ),
    "affine": (lambda: Affine(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]), learnable=True), ["line"] * 2),
}


@pytest.fixture(params=ZOO, ids=lambda name: name.replace(" ", "_"))
def case(request):
    make, kinds = ZOO[request.param]
    torch.manual_seed(3)  # initial weights
    return make, kinds


def test_round_trip(case, run):
    make, kinds = case
    bijection, state = perturbed(make()), state_of(kinds, 500)
    y, log_ratio = bijection(state, run)
    x, log_back = bijection.reverse(y, run)
    assert (y["q"] - state["q"]).abs().max() > 0.03
    torch.testing.assert_close(x["q"], state["q"], rtol=0, atol=1e-11)
    torch.testing.assert_close(log_back, -log_ratio, rtol=0, atol=1e-9)
    z, log_back = bijection.reverse(state, run)
    x, log_ratio = bijection(z, run)
    torch.testing.assert_close(x["q"], state["q"], rtol=0, atol=1e-11)
    torch.testing.assert_close(log_back, -log_ratio, rtol=0, atol=1e-9)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_log_ratio_is_that_of_the_autograd_jacobian(case, run, direction):
    make, kinds = case
    bijection, state = perturbed(make()), state_of(kinds, 6)

    def f(q):
        return getattr(bijection, direction)(state.replace(q=q), run)[0]["q"].sum(0)

    _, log_ratio = getattr(bijection, direction)(state, run)
    jacobian = torch.autograd.functional.jacobian(f, state["q"]).permute(1, 0, 2)
    torch.testing.assert_close(log_ratio, torch.linalg.slogdet(jacobian).logabsdet, rtol=0, atol=1e-10)


def test_every_parameter_gets_a_gradient(case, run):
    make, kinds = case
    bijection = perturbed(make())
    y, log_ratio = bijection(state_of(kinds, 200), run)
    (torch.sin(y["q"]).sum() + log_ratio.sum()).backward()
    for name, p in bijection.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
        assert torch.isfinite(p.grad).all(), name


def test_new_ones_are_the_identity(case, run):
    make, kinds = case
    bijection = make().double()
    if isinstance(bijection, Affine):
        bijection = Affine(torch.zeros(2).double(), torch.ones(2).double())
    state = state_of(kinds)
    y, log_ratio = bijection(state, run)
    torch.testing.assert_close(y["q"], state["q"], rtol=0, atol=1e-13)
    assert log_ratio.abs().max() < 1e-13


def test_float32_agrees_with_float64(case, run):
    make, kinds = case
    torch.manual_seed(4)
    bijection = perturbed(make(), dtype=torch.float32)
    y32, r32 = bijection(state_of(kinds, 50, dtype=torch.float32), run)
    y64, r64 = bijection.double()(state_of(kinds, 50, dtype=torch.float32).to(dtype=torch.float64), run)
    assert y32["q"].dtype == torch.float32
    assert r32.dtype == torch.float64
    assert (torch.sin(y32["q"] - y64["q"])).abs().max() < 1e-4
    assert (r32 - r64).abs().max() < 1e-2
    assert (r32 - r64).abs().median() < 1e-4


def test_state_dict_and_pickle_round_trip(case, run, tmp_path):
    make, kinds = case
    bijection, state = perturbed(make()), state_of(kinds)
    torch.save(bijection.state_dict(), tmp_path / "weights.pt")
    other = make().double()
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    again = pickle.loads(pickle.dumps(bijection))
    for copy in (other, again):
        assert torch.equal(copy(state, run)[0]["q"], bijection(state, run)[0]["q"])


@pytest.mark.parametrize(
    "make", [lambda: SplineCoupling(["circle"] * 4, MASK[:4]), lambda: ElementwiseSpline(["circle"] * 4)]
)
def test_circle_is_continuous_across_the_cut(make, run):
    bijection = perturbed(make())
    step = 1e-12
    q = state_of(["circle"] * 4)["q"]
    for i in range(4):
        left, right = q.clone(), q.clone()
        left[:, i], right[:, i] = PI - step, -PI + step
        (y_left, r_left), (y_right, r_right) = (
            bijection(State({"q": p}, {"q": Space("mixed", (4,))}), run) for p in (left, right)
        )
        assert torch.sin(y_left["q"] - y_right["q"]).abs().max() < 1e-9
        assert (r_left - r_right).abs().max() < 1e-8
        assert (y_left["q"].abs() <= PI).all()


def test_context_matters_and_its_absence_raises(run):
    coupling = perturbed(SplineCoupling(MIXED, MASK, context={"beta": 2}))
    state = state_of(MIXED)
    y, _ = coupling(state, run)
    other, _ = coupling(state, Run(run.rng, context={"beta": torch.tensor([0.9, 1.5])}))
    assert (y["q"] - other["q"]).abs().max() > 1e-3
    rows = torch.tensor([0.5, 1.5]).expand(20, 2)
    assert torch.equal(coupling(state, Run(run.rng, context={"beta": rows}))[0]["q"], y["q"])
    with pytest.raises(ValueError, match="beta"):
        coupling(state, Run(run.rng))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("make", [lambda: SplineCoupling(MIXED, MASK), lambda: ElementwiseSpline(MIXED, bins=4)])
def test_second_derivatives(make, run, direction):
    bijection, state = perturbed(make()), state_of(MIXED, 2)
    q = state["q"].requires_grad_()

    def f(q):
        y, r = getattr(bijection, direction)(state.replace(q=q), run)
        return torch.cat([torch.sin(y["q"]).flatten(), r])

    assert torch.autograd.gradgradcheck(f, q)
    # gradients of a gradient penalty reach the parameters, and are those of plain operations
    results = []
    for fused in (True, False):
        bijection.fused = fused
        (slope,) = torch.autograd.grad(f(q).sum(), q, create_graph=True)
        results.append(torch.autograd.grad(slope.square().sum(), list(bijection.parameters())))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "make", [lambda: SplineCoupling(MIXED, MASK, fused=False), lambda: ElementwiseSpline(MIXED, fused=False)]
)
def test_torch_func_transforms_work_on_plain_operations(make, run):
    bijection, state = perturbed(make()), state_of(MIXED, 3)

    def f(q):
        return bijection(State({"q": q[None]}, state.spaces), run)[0]["q"][0]

    jacobian = torch.func.vmap(torch.func.jacfwd(f))(state["q"])
    torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, bijection(state, run)[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["circle", "interval", "line"])
def test_compiled_elementwise_equals_eager(kind, run, monkeypatch):
    bijection = perturbed(ElementwiseSpline([kind] * 3, bins=3))
    results = []
    for off in (True, False):
        monkeypatch.setattr(compiled.compiler, "off", off)
        for direction, n in (("forward", 7), ("reverse", 64)):
            bijection.zero_grad()
            state = state_of([kind] * 3, n)
            q = state["q"].requires_grad_()
            y, r = getattr(bijection, direction)(state.replace(q=q), run)
            (torch.sin(y["q"]).sum() + r.sum()).backward()
            results.append((y["q"], r, q.grad, bijection.raw.grad))
    assert not compiled.compiler.off
    for before, after in zip(results[:2], results[2:], strict=True):
        for a, b in zip(before, after, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_points_outside_an_interval_become_nan_and_lines_pass(run):
    coupling = perturbed(SplineCoupling(["interval", "line"], torch.tensor([True, False])))
    y, r = coupling(State({"q": torch.tensor([[1.5, 0.0], [0.5, 0.0]]).double()}, {"q": Space("mixed", (2,))}), run)
    assert torch.isnan(r).tolist() == [True, False]
    assert torch.isnan(y["q"]).tolist() == [[True, False], [False, False]]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SplineCoupling(["circle", "sphere"], MASK[:2]), "sphere"),
        (lambda: SplineCoupling(["circle"] * 3, MASK[:2]), "3 kinds"),
        (lambda: SplineCoupling(["circle"] * 2, torch.tensor([True, True])), "at least one"),
        (lambda: AffineCoupling(["circle", "line"], MASK[:2]), "SplineCoupling"),
        (lambda: Affine(torch.zeros(2), torch.tensor([1.0, 0.0])), r"\[1\]"),
        (lambda: ElementwiseSpline(["line"], bins=2000), "min_bin"),
        (lambda: ElementwiseSpline(["sphere"]), "sphere"),
        (lambda: alternating_masks(["line"], 2, make_rng(0)), "two coordinates"),
    ],
)
def test_errors_name_what_is_wrong(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("d", [2, 3, 17, 60])
def test_masks_cover_all_pairs_and_are_balanced(d):
    n = 2 * (d - 1).bit_length()
    masks = alternating_masks(["line"] * d, n, make_rng(5))
    covered = torch.eye(d, dtype=torch.bool)
    for mask in masks:
        covered |= ~mask[:, None] & mask[None, :]
    assert covered.all()
    assert torch.equal(torch.stack(masks).sum(0), torch.full((d,), n // 2))
    assert all(abs(2 * int(mask.sum()) - d) <= 1 for mask in masks)
    assert len(alternating_masks(["line"] * d, 5, make_rng(5))) == 5
