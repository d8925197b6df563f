"""Fields on all pairs of atoms: symmetries, derivatives, and one set of weights for many molecules."""

import copy
import pickle
from pathlib import Path

import mdtraj
import pytest
import torch

import boltzflow as bf
from boltzflow.networks import AtomFeatures, EGNNField, VectorField
from boltzflow.run import make_rng
from boltzflow.testing import assert_equivariant, check_vector_field

INPUTS = Path(__file__).parents[1] / "inputs"
SMALL = {"n_layers": 2, "hidden": 6}
FIELDS = {"egnn": lambda features, dim=3, **options: EGNNField(features, dim, **{**SMALL, **options})}
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
        field.times.bias += 0.5
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


def test_egnn_in_two_dimensions():
    checked(shaken(EGNNField([0] * 4, 2, **SMALL)), positions(4, 2), [range(4)])
