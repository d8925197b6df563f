import pytest
import torch

from boltzflow.networks import FrameField
from boltzflow.run import make_rng
from boltzflow.testing import check_vector_field


def random_field(**sizes):
    field = FrameField(5, frame=(3, 0, 2), scale=0.7, hidden=(9, 8), **sizes).double()
    rng = make_rng(1)
    for parameter in field.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=rng)
    return field


def positions(n):
    return torch.randn(n, 5, 3, dtype=torch.float64, generator=make_rng(2))


def test_symmetries_and_closed_forms():
    check_vector_field(random_field(), positions(3), rng=make_rng(3), reflection=False)


def test_it_knows_left_from_right():
    field, x = random_field(), positions(1)
    mirror = torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert (field(x * mirror, 0.3) - field(x, 0.3) * mirror).abs().max() > 0.1
    assert not field.reflects


def test_untrained_it_moves_nothing():
    assert FrameField(5, frame=(0, 1, 2), scale=1.0).double()(positions(2), 0.5).abs().max() == 0


@pytest.mark.parametrize("wrong", [{"frame": (0, 1, 1)}, {"frame": (0, 1, 5)}, {"scale": 0.0}])
def test_sizes_that_make_no_field(wrong):
    with pytest.raises(ValueError, match="FrameField"):
        FrameField(5, **{"frame": (0, 1, 2), "scale": 1.0, **wrong})
