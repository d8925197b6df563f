"""Expressions against OpenMM's own parser and derivatives, function by function and at random."""

import math
import random

import openmm
import pytest
import torch

from boltzflow.errors import UnsupportedForceError
from boltzflow.forcefield import from_openmm
from boltzflow.forcefield.expressions import Expression

POINTS = torch.tensor([[0.31, 0.7, 0.2], [-0.4, 0.5, 0.9], [0.8, -0.6, -0.1], [-0.2, -0.9, -0.7]], dtype=torch.float64)


def _system(text: str) -> openmm.System:
    force = openmm.CustomExternalForce(text)
    force.addParticle(0)
    system = openmm.System()
    system.addParticle(1.0)
    system.addForce(force)
    return system


def _compare(text: str, reference) -> None:
    system = _system(text)
    expected = reference(system, POINTS[:, None])
    energy, force = from_openmm(system).energy_and_force(POINTS[:, None])
    finite = expected[0].isfinite() & expected[1].isfinite().all(-1).all(-1)
    torch.testing.assert_close(energy[finite], expected[0][finite], rtol=1e-11, atol=1e-11, msg=text)
    torch.testing.assert_close(force[finite], expected[1][finite], rtol=1e-10, atol=1e-10, msg=text)
    assert (energy[expected[0].isnan()] == math.inf).all(), text


@pytest.mark.parametrize(
    "text",
    [
        *(
            f"{name}(1.1*x+0.2*y)"
            for name in [
                "exp",
                "sin",
                "cos",
                "sec",
                "csc",
                "tan",
                "cot",
                "asin",
                "acos",
                "atan",
                "sinh",
                "cosh",
                "tanh",
                "erf",
                "erfc",
                "step",
                "delta",
                "abs",
                "floor",
            ]
        ),
        *(f"{name}(x^2+z^2+0.1)" for name in ("sqrt", "log", "square", "cube", "recip", "ceil")),
        "atan2(x, y)+atan2(2, z)+atan2(y, -1)",
        "min(x, y)+min(z, 0.1)+min(0.5, x)+max(x, y)*max(0.1, z)+max(x, -2)",
        "select(x, y^2, z)+select(step(x), 0.1, 0.7)+select(0, x, y)+select(2, x, y)+select(delta(x), 1/x, y)",
        "-x^2+x^-2+2^-x+x^-2^2+2^3^2-(-x)^3",
        "x-y-z+x/y/z*2-8/4/2",
        "x^0+x^1+x^5+x^7+x^0.5+x^-0.5+y^2.5+(x^2+1)^(y+z)+abs(x)^(1/3)+z^13-1/z^6",
        "1.5e-2*x+.5*y+2.*z+1E1+1e+0",
        "a*b; a=x+b; b=y*c; c=3 ;",
        "a; a=x; a=y; ",
        " x * ( y\n + 2 )\t",
        "or*in+x1; or=x; in=y; x1=z",
        "3",
        "0*x+1*y+(z-0)/2+x*0",
        "select(step(x-y), sqrt(x-y), log(y-x))",
    ],
)
def test_as_openmm(text, reference):
    _compare(text, reference)


def _random_expression(rng: random.Random, depth: int) -> str:
    if depth == 0 or rng.random() < 0.1:
        return rng.choice(["x", "y", "z", "2", "0.3", "1.7"])
    kind = rng.random()
    first, second = _random_expression(rng, depth - 1), _random_expression(rng, depth - 1)
    if kind < 0.5:
        return f"{first}{rng.choice(['+', '-', '*', '/', ' + ', ' - '])}{second}"
    if kind < 0.6:
        return f"({first})^{rng.choice(['2', '3', '-1', '(-2)', '6', '1.5'])}"
    if kind < 0.7:
        return f"-({first})"
    if kind < 0.8:
        return f"{rng.choice(['min', 'max', 'atan2'])}({first},{second})"
    if kind < 0.85:
        return f"select(step({first}),{second},{_random_expression(rng, depth - 1)})"
    return f"{rng.choice(['exp', 'sin', 'cos', 'tanh', 'erf', 'sqrt', 'log', 'abs', 'atan', 'cosh'])}({first})"


@pytest.mark.parametrize("seed", range(60))
def test_random_expressions_as_openmm(seed, reference):
    _compare(_random_expression(random.Random(seed), 4), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    x = torch.tensor([0.1, -0.2], dtype=dtype)
    for text in ("select(step(x), 0.1, 0.7)", "step(x)*0.3", "min(x, 0.05)", "x^0.3", "atan2(1, x)", "select(x, 1, x)"):
        assert Expression(text)({"x": x}).dtype == dtype, text


def test_equal_parts_are_computed_once_and_constants_are_folded():
    def size(text: str) -> int:
        return len(Expression(text)._program[0])

    assert size("sin(2*3+1)*x") == 3
    assert size("exp(x*y)+exp(x*y)") == size("a+a; a=exp(x*y)") == 5
    assert size("1/r^12-1/r^6") == size("(1/r)^12-(1/r)^6")


def test_long_and_deep_expressions():
    x = torch.tensor([0.5], dtype=torch.float64)
    assert Expression("+".join(["x"] * 3000))({"x": x}).item() == 1500
    assert Expression("(" * 100 + "x" + ")" * 100)({"x": x}).item() == 0.5
    with pytest.raises(UnsupportedForceError, match="nested too deeply"):
        Expression("(" * 10_000 + "x" + ")" * 10_000)


def test_variables_and_requirements():
    expression = Expression("select(step(a), 1/b, c)*d; d=e^2; unused=f")
    assert expression.variables == {"a", "b", "c", "e"}
    with pytest.raises(UnsupportedForceError, match="unknown variable 'e'"):
        expression.require({"a", "b", "c", "d"})


def test_second_derivatives():
    text = "exp(-x^2)*sqrt(x+2)+select(step(x), x^3, log(1-x))+max(x, 0)^2*atan(x)+erf(x)/(1+x^2)"
    x = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64, requires_grad=True)
    expression = Expression(text)
    assert torch.autograd.gradcheck(lambda x: expression({"x": x}), x)
    assert torch.autograd.gradgradcheck(lambda x: expression({"x": x}), x)
