"""State: checks at construction, replacement, rows, and the evaluations that it carries."""

import pytest
import torch

from boltzflow.state import Evaluation, Space, State

SPACES = {"x": Space("line", (2,)), "k": Space("integer", ())}


def make(n=3, **changes):
    fields = {"x": torch.arange(2.0 * n, dtype=torch.float64).reshape(n, 2), "k": torch.arange(n)}
    return State({**fields, **changes}, SPACES)


def evaluated(state, context=None, *, force=True):
    u = state["x"].sum(1)
    return state.with_evaluation("target", Evaluation(u, {"x": -state["x"]} if force else None, context))


def test_what_a_state_knows():
    state = make()
    assert len(state) == 3
    assert "x" in state
    assert "y" not in state
    assert (state.dtype, state.device) == (torch.float64, torch.device("cpu"))
    assert Space("sphere", (3,), dimension=2).dimension == 2
    assert Space("line", (4, 3)).dimension == 12
    assert Space("integer", ()).dimension == 1
    with pytest.raises(KeyError, match="no field 'y'"):
        state["y"]


@pytest.mark.parametrize(
    ("fields", "spaces", "message"),
    [
        ({}, {}, "at least one field"),
        ({"x": torch.zeros(2, 2)}, SPACES, "same names"),
        ({"x": torch.zeros(2, 2), "k": torch.zeros(3)}, SPACES, "share the batch size"),
        ({"x": torch.zeros(2, 3)}, {"x": SPACES["x"]}, r"field 'x': expected shape \(batch, 2\), got \(2, 3\)"),
    ],
)
def test_inconsistent_fields_are_named(fields, spaces, message):
    with pytest.raises(ValueError, match=message):
        State(fields, spaces)


def test_replacing_a_field_drops_evaluations():
    state = evaluated(make())
    moved = state.replace(x=state["x"] + 1)
    assert not moved.evaluations
    assert state.evaluations
    assert moved["k"] is state["k"]
    with pytest.raises(KeyError, match=r"no fields \['y'\]"):
        state.replace(y=state["x"])


def test_fields_are_added_and_dropped_with_their_spaces():
    state = evaluated(make())
    v = torch.zeros(3, 1, dtype=torch.float64)
    wider = state.with_fields({"v": v}, {"v": Space("line", (1,))}, drop=("k",))
    assert set(wider.fields) == set(wider.spaces) == {"x", "v"}
    assert not wider.evaluations


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, None)])
def test_rows_take_their_evaluations_along(rows):
    state = evaluated(make())
    some = state.index(rows)
    found = some.evaluations["target"]
    assert torch.equal(some["x"], state["x"][rows])
    assert torch.equal(found.energy, some["x"].sum(1))
    assert torch.equal(found.force["x"], -some["x"])


def test_where_picks_rows_and_keeps_what_both_evaluated():
    a = evaluated(make())
    b = evaluated(a.replace(x=-a["x"], k=a["k"] + 10))
    keep = torch.tensor([True, False, True])
    mixed = a.where(keep, b)
    assert mixed["k"].tolist() == [0, 11, 2]
    assert torch.equal(mixed.evaluations["target"].energy, mixed["x"].sum(1))
    assert torch.equal(mixed.evaluations["target"].force["x"], -mixed["x"])
    # a force that only one has is dropped, and so is an evaluation under another context or of one alone
    half = a.where(keep, evaluated(b.detach(), force=False)).evaluations["target"]
    assert half.force is None
    assert not a.where(keep, evaluated(b.replace(x=b["x"]), context={"temperature": 1.0})).evaluations
    assert not a.where(keep, b.replace(x=b["x"])).evaluations


def test_detaching_keeps_evaluations_and_values():
    x = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    state = evaluated(State({"x": x * 2, "k": torch.arange(2)}, SPACES)).detach()
    assert not state["x"].requires_grad
    assert state.evaluations


def test_moving_casts_floating_fields_alone():
    state = evaluated(make()).to(dtype=torch.float32)
    assert (state["x"].dtype, state["k"].dtype, state.dtype) == (torch.float32, torch.int64, torch.float32)
    assert not state.evaluations
