"""The functions of OpenMM's algebraic expressions on tensors, with gradients that stay finite at their edges."""

from collections.abc import Callable

import torch

from boltzflow._typing import Tensor

__all__ = ["ARITY", "FUNCTIONS", "RISKY", "Operand"]

Operand = Tensor | float

# Under a square root: the gradient at exactly zero becomes finite, and nothing else changes.
_TINY = 1e-24


def _both(a: Operand, b: Operand) -> tuple[Tensor, Tensor]:
    like = a if isinstance(a, Tensor) else b
    return torch.as_tensor(a, dtype=like.dtype, device=like.device), torch.as_tensor(
        b, dtype=like.dtype, device=like.device
    )


def _power(x: Operand, y: Operand) -> Tensor:
    x, y = _both(x, y)
    # Where the base is zero the derivative is infinite (or NaN, that with respect to the exponent): taken as zero.
    zero = x == 0
    return torch.where(zero, x.detach().pow(y.detach()), torch.where(zero, 1.0, x).pow(y))


def _inner(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply asin or acos with gradient zero at -1 and 1, where it is infinite."""
    edge = x.abs() == 1
    return torch.where(edge, function(x.detach()), function(torch.where(edge, 0.0, x)))


def _atan2(y: Operand, x: Operand) -> Tensor:
    y, x = _both(y, x)
    return torch.atan2(y, torch.where((x == 0) & (y == 0), 1.0, x))


def _smaller(a: Operand, b: Operand) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return a.clamp(max=b) if isinstance(a, Tensor) else b.clamp(max=a)


def _larger(a: Operand, b: Operand) -> Tensor:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a.clamp(min=b) if isinstance(a, Tensor) else b.clamp(min=a)


FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "^": _power,
    "negate": lambda x: -x,
    "abs": lambda x: x.abs(),
    "acos": lambda x: _inner(torch.acos, x),
    "asin": lambda x: _inner(torch.asin, x),
    "atan": torch.atan,
    "atan2": _atan2,
    "ceil": lambda x: x.detach().ceil(),
    "cos": torch.cos,
    "cosh": torch.cosh,
    "cot": lambda x: x.tan().reciprocal(),
    "csc": lambda x: x.sin().reciprocal(),
    "delta": lambda x: (x.detach() == 0).to(x.dtype),
    "erf": torch.erf,
    "erfc": torch.erfc,
    "exp": torch.exp,
    "floor": lambda x: x.detach().floor(),
    "log": torch.log,
    "max": _larger,
    "min": _smaller,
    "recip": torch.reciprocal,
    "sec": lambda x: x.cos().reciprocal(),
    "select": lambda c, a, b: torch.where(torch.as_tensor(c) != 0, a, b),
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": lambda x: (x + _TINY).sqrt(),
    "square": lambda x: x * x,
    "step": lambda x: (x.detach() >= 0).to(x.dtype),
    "tan": torch.tan,
    "tanh": torch.tanh,
}
"""Operator or function -> what computes it; at least one of the arguments is a tensor."""

ARITY = {
    **dict.fromkeys(FUNCTIONS, 1),
    **dict.fromkeys(["+", "-", "*", "/", "^", "atan2", "max", "min"], 2),
    "cube": 1,
    "select": 3,
}
"""Number of arguments of each function that an expression may use."""

RISKY = frozenset(
    {"/", "^", "acos", "asin", "atan2", "cosh", "cot", "csc", "exp", "log", "recip", "sec", "sinh", "sqrt", "tan"}
)
"""Functions that may be infinite or NaN, or have such a derivative, somewhere."""
