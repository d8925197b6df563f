"""Names of systems: read, written, and read again."""

import pytest

from boltzflow.errors import FormatError
from boltzflow.io.system_name import SystemName, read_name

MEASURES = ["stiff", "rigid"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("water", SystemName("water")),
        ("water@350", SystemName("water", temperature=350.0)),
        ("water@lambda=0.25", SystemName("water", lam=0.25)),
        ("water@350.5,lambda=0", SystemName("water", temperature=350.5, lam=0.0)),
        ("water:stiff", SystemName("water", "stiff")),
        ("a/b:c:rigid@350,lambda=0.5", SystemName("a/b:c", "rigid", 350.0, 0.5)),
        ("water:soft", SystemName("water:soft")),
    ],
)
def test_names_are_read_and_written(text, expected):
    assert read_name(text, measures=MEASURES) == expected
    assert str(expected) == text


def test_order_and_greek_letters_do_not_matter():
    expected = SystemName("water", temperature=350.0, lam=0.5)
    for text in ("water@lambda=0.5,350", "water@350,λ=0.5", "water@ 350, lambda = 0.5"):
        assert read_name(text, measures=MEASURES) == expected
    assert read_name("water@lambda=1", measures=MEASURES) == SystemName("water")


def test_a_folder_that_is_there_is_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run@350", "run:stiff"):
        (tmp_path / name).mkdir()
        assert read_name(name, measures=MEASURES) == SystemName(name)
    assert read_name("run:stiff@lambda=0.5", measures=MEASURES) == SystemName("run:stiff", lam=0.5)


@pytest.mark.parametrize("state", ["warm", "", "350,300", "lambda=0,lambda=1", "mu=0.5", "lambda=half", "350,"])
def test_other_states_are_refused(state):
    with pytest.raises(FormatError, match="expected NAME@TEMPERATURE in kelvin"):
        read_name(f"water@{state}", measures=MEASURES)
