"""Fields on all pairs of atoms: symmetries, derivatives, and one set of weights for many molecules."""

import copy
import pickle
from pathlib import Path

import mdtraj
import pytest
import torch

import boltzflow as bf
from boltzflow.networks import (
    AtomFeatures,
    E3NNField,
    EGNNField,
    HollowField,
    PaiNNField,
    TransformerField,
    VectorField,
)
from boltzflow.run import make_rng
from boltzflow.testing import assert_equivariant, check_vector_field

INPUTS = Path(__file__).parents[1] / "inputs"
SMALL = {"n_layers": 2, "hidden": 6}
FIELDS = {
    "egnn": lambda features, **options: EGNNField(features, 3, **{**SMALL, **options}),
    "painn": lambda features, **options: PaiNNField(features, 3, **{**SMALL, "n_basis": 7, **options}),
    "hollow": lambda features, **options: HollowField(features, 3, **{**SMALL, "n_basis": 7, **options}),
    "e3nn": lambda features, **options: E3NNField(features, 3, **{**SMALL, "n_tensors": 3, "n_basis": 7, **options}),
    "transformer": lambda features, **options: TransformerField(features, 3, **{**SMALL, "n_heads": 2, **options}),
}
TYPES = [0, 1, 0, 2, 1]


@pytest.fixture(params=FIELDS)
def make(request):
    return FIELDS[request.param]


@pytest.fixture(scope="module")
def dipeptide():
    system = bf.load_system("alanine_dipeptide")
    return AtomFeatures.of_topology(system.topology), system.positions


def shaken(field, std=0.4):
    """Weights that make all parts of a field count."""
    rng = make_rng(1)
    field = field.double()
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=rng)
    return field


def positions(n=5, dim=3, batch=3):
    return torch.randn(batch, n, dim, dtype=torch.float64, generator=make_rng(2))


def checked(field, x, permuted):
    check_vector_field(field, x, rng=make_rng(3), rotation=field.rotates, reflection=field.reflects, permuted=permuted)


def test_symmetries_and_derivatives_of_particles(make):
    checked(shaken(make(TYPES, unit=1.3)), positions(), [[0, 2], [1, 4]])


def test_symmetries_of_a_molecule(make, dipeptide):
    features, relaxed = dipeptide
    field, rng = shaken(make(features, unit=0.3)), make_rng(3)
    x = relaxed + 0.02 * torch.randn(2, *relaxed.shape, dtype=torch.float64, generator=rng)
    options = {"output": "equivariant", "rotation": field.rotates, "reflection": field.reflects}
    with torch.no_grad():
        assert_equivariant(lambda y: field(y, 0.4), x, rng=rng, permuted=[[0, 2, 3], [11, 12, 13]], **options)
        for alike_but_elsewhere in ([0, 11], [5, 15]):
            with pytest.raises(AssertionError, match="permutation"):
                assert_equivariant(lambda y: field(y, 0.4), x, rng=rng, permuted=[alike_but_elsewhere], **options)


def test_atoms_of_other_types_are_not_exchanged(make):
    with pytest.raises(AssertionError, match="permutation"):
        checked(shaken(make(TYPES)), positions(), [[0, 1]])


def test_float32(make):
    checked(shaken(make(TYPES), std=0.2).float(), positions().float(), [[0, 2]])


def test_products_with_the_jacobian(make):
    field, x = shaken(make(TYPES)), positions()
    tangent = torch.randn(x.shape, dtype=torch.float64, generator=make_rng(4))
    v, pushed = field.jvp(x, tangent, 0.3)
    torch.testing.assert_close(v, field(x, 0.3))
    expected = (VectorField.jacobian(field, x, 0.3) @ tangent.flatten(1)[..., None])[..., 0]
    torch.testing.assert_close(pushed.flatten(1), expected)


def test_every_parameter_gets_its_gradient(make):
    field, x = shaken(make(TYPES)), positions()
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    (field(x, t).square().sum() + field.divergence(x, t).square().sum()).backward()
    assert [name for name, p in field.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_untrained_it_hardly_moves(make):
    assert make(TYPES)(positions().float(), 0.5).abs().max() < 0.05


def test_lengths_scale_with_the_unit(make):
    field, x = shaken(make(TYPES, unit=1.0)), positions()
    wide = make(TYPES, unit=2.5).double()
    wide.load_state_dict(field.state_dict())
    torch.testing.assert_close(wide(2.5 * x, 0.3), 2.5 * field(x, 0.3))


def test_copies_and_pickles(make):
    field, x = shaken(make(TYPES)), positions()
    for other in (copy.deepcopy(field), pickle.loads(pickle.dumps(field))):
        torch.testing.assert_close(other(x, 0.3), field(x, 0.3))


def test_one_set_of_weights_for_two_dipeptides(make, dipeptide):
    features, relaxed = dipeptide
    other = mdtraj.load(str(INPUTS / "alanylglycine.pdb"))
    field = shaken(make(features, unit=0.3))
    view = field.for_molecule(AtomFeatures.of_topology(other.topology))
    assert {id(p) for p in view.parameters()} == {id(p) for p in field.parameters()}
    x = torch.from_numpy(other.xyz).double()
    assert view(x, 0.3).shape == x.shape
    assert field(relaxed[None], 0.3).shape == (1, 22, 3)
    # what is learned on one is known to the other
    before = view(x, 0.3).detach()
    with torch.no_grad():
        field.times.bias += torch.linspace(0.0, 1.0, 6)
    assert not torch.allclose(view(x, 0.3), before)
    assert field.state_dict().keys() == view.state_dict().keys()


def test_a_molecule_of_other_features_is_refused(make, dipeptide):
    field = make(dipeptide[0])
    with pytest.raises(ValueError, match="one sort"):
        field.for_molecule(TYPES)


@pytest.mark.parametrize("wrong", [{"features": [0]}, {"unit": 0.0}, {"hidden": 0}])
def test_numbers_that_make_no_field(make, wrong):
    with pytest.raises(ValueError, match="expected at least"):
        make(**{"features": [0, 0], **wrong})


@pytest.mark.parametrize("kind", [EGNNField, PaiNNField, HollowField, TransformerField])
def test_in_two_dimensions(kind):
    options = {"n_heads": 2} if kind is TransformerField else {}
    checked(shaken(kind([0] * 4, 2, **SMALL, **options), std=0.2), positions(4, 2), [range(4)])


def test_what_a_field_does_not_go_with_it_does_not_claim():
    x = positions()
    handed, free = (shaken(FIELDS[name](TYPES)) for name in ("e3nn", "transformer"))
    assert (handed.rotates, handed.reflects, free.rotates, free.reflects) == (True, False, False, False)
    with pytest.raises(AssertionError, match="reflection"):
        check_vector_field(handed, x, rng=make_rng(3))
    with pytest.raises(AssertionError, match="rotation"):
        check_vector_field(free, x, rng=make_rng(3), reflection=False)


@pytest.mark.parametrize(("n", "n_layers"), [(7, 0), (7, 1), (13, 2)])
def test_the_hollow_divergence_is_the_full_trace(n, n_layers):
    field, x = shaken(HollowField([0] * n, 3, n_layers=n_layers, hidden=6, n_basis=7), std=0.2), positions(n)
    _, divergence = field.velocity_and_divergence(x, 0.3)
    with torch.no_grad():
        trace = VectorField.jacobian(field, x, 0.3).diagonal(dim1=1, dim2=2).sum(1)
        torch.testing.assert_close(field.divergence(x, 0.3), trace, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(divergence.detach(), trace, rtol=1e-9, atol=1e-9)
    assert divergence.requires_grad


@pytest.mark.parametrize("through", ["parameters", "positions"])
def test_derivatives_of_the_hollow_divergence_are_those_of_the_trace(through):
    field, x = shaken(FIELDS["hollow"](TYPES), std=0.2), positions().requires_grad_()
    by = x if through == "positions" else list(field.parameters())
    found = torch.autograd.grad(field.divergence(x, 0.3).square().sum(), by, allow_unused=True)
    trace = VectorField.jacobian(field, x, 0.3).diagonal(dim1=1, dim2=2).sum(1)
    expected = torch.autograd.grad(trace.square().sum(), by, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        if b is None or not b.any():
            assert a is None or not a.any()
        else:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_what_moves_an_atom_is_made_without_it():
    field, x = shaken(FIELDS["hollow"](TYPES), std=0.2), positions()
    moved = x.clone()
    moved[:, 1] += 0.3
    for before, after in zip(field._surroundings(x, 0.3), field._surroundings(moved, 0.3), strict=True):
        others = [0, 2, 3, 4]
        torch.testing.assert_close(after[:, 1, others], before[:, 1, others])
        assert (after[:, 0, others[1:]] - before[:, 0, others[1:]]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (E3NNField, {"n_dimensions": 2}, "3 dimensions"),
        (E3NNField, {"n_layers": 1}, "left from right"),
        (TransformerField, {"n_heads": 5}, "multiple of the heads"),
        (PaiNNField, {"reach": 0.0}, "positive reach"),
    ],
)
def test_sizes_that_make_no_field(kind, wrong, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"features": [0, 0], "n_dimensions": 3, **wrong})
