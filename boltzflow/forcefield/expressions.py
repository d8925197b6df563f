"""OpenMM's algebraic expressions, parsed into a short program and evaluated on tensors."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from boltzflow._typing import Tensor
from boltzflow.errors import UnsupportedForceError, nearest
from boltzflow.forcefield.operations import ARITY, FUNCTIONS, RISKY, Operand

__all__ = ["Expression"]

_TOKEN = re.compile(r"\s*(?:(?P<number>[0-9.][0-9.]*(?:[eE][+-]?[0-9]*)?)|(?P<name>[^\s()+\-*/^,]+)|(?P<sign>.))", re.S)
_PRECEDENCE = {"+": 0, "-": 0, "*": 1, "/": 1, "^": 3}
_NEGATION = 2  # binds tighter than products and looser than powers
_LARGEST_POWER = 64  # integer powers up to this one are products


class _Step(NamedTuple):
    """One step of a program: a constant, a variable, or an operation on earlier steps."""

    operation: str
    arguments: tuple[int, ...] = ()
    content: Any = None


class Expression:
    """An algebraic expression in OpenMM's syntax, such as ``"k*(r-r0)^2; k=10"``.

    Operators + - * / ^, unary minus, numbers, the functions of OpenMM's manual, and definitions behind semicolons,
    which may use those behind them. Text never reaches Python's own interpreter. Equal subexpressions are computed
    once, constants are folded, and integer powers become products.

    Gradients are those of the branch that is taken: ``select`` keeps infinities and NaN of the other branch out of the
    derivatives of any order. ``step``, ``delta``, ``floor`` and ``ceil`` have derivative zero.

    References:
        The parsing rules are those of the Lepton library in OpenMM.

    Example:
        >>> energy = Expression("0.5*k*max(0, r-r0)^2")
        >>> sorted(energy.variables)
        ['k', 'r', 'r0']
        >>> energy({"k": 4.0, "r0": 1.0, "r": torch.tensor([0.5, 3.0])})
        tensor([0., 8.])
    """

    def __init__(
        self, text: str, *, functions: Mapping[str, int] | None = None, symbols: Mapping[str, int] | None = None
    ) -> None:
        """Parse an expression.

        Args:
            text: the expression and its definitions.
            functions: name -> number of arguments of further functions, given to `__call__` with the variables.
            symbols: name -> number of arguments of functions whose arguments are names rather than values. The whole
                call is a variable then, such as ``"distance(p1,p2)"``.

        Raises:
            UnsupportedForceError: the text is not an expression, or uses an unknown function.
        """
        self.text = text
        self._functions = dict(functions or {})
        self._symbols = dict(symbols or {})
        self._steps: list[_Step] = []
        self._index: dict[_Step, int] = {}
        self._powers: dict[int, tuple[int, int]] = {}  # step -> base and exponent of an integer power
        self._definitions: dict[str, int] = {}
        head, *definitions = text.split(";")
        # From the last to the first: a definition may use those behind it.
        for definition in reversed(definitions):
            if not definition.strip():
                continue
            name, equals, value = definition.partition("=")
            if not equals or not name.strip():
                raise self._error(f"the definition {definition.strip()!r} has no name")
            self._definitions[name.strip()] = self._parse(value)
        root = self._parse(head)
        self._program = self._compile(root)

    def __repr__(self) -> str:
        """Show the text."""
        return f"Expression({self.text!r})"

    def _error(self, reason: str) -> UnsupportedForceError:
        return UnsupportedForceError(f"the expression {self.text!r} cannot be evaluated: {reason}")

    # --- parsing -----------------------------------------------------------------------------------------------------

    def _parse(self, text: str) -> int:
        self._tokens = [(match.lastgroup, match[match.lastgroup]) for match in _TOKEN.finditer(text.rstrip())]
        self._position = 0
        try:
            result = self._operators(0)
        except RecursionError:
            raise self._error("it is nested too deeply") from None
        if self._position != len(self._tokens):
            raise self._error(f"unexpected {self._tokens[self._position][1]!r} in {text.strip()!r}")
        return result

    def _peek(self) -> str | None:
        return self._tokens[self._position][1] if self._position < len(self._tokens) else None

    def _expect(self, sign: str) -> None:
        if self._peek() != sign:
            raise self._error(f"{sign!r} expected before {self._peek()!r}" if self._peek() else f"{sign!r} is missing")
        self._position += 1

    def _operators(self, least: int) -> int:
        result = self._operand()
        while (sign := self._peek()) in _PRECEDENCE and _PRECEDENCE[sign] >= least:
            self._position += 1
            # A power takes the powers to its right first, every other operator those to its left.
            right = self._operators(_PRECEDENCE[sign] + (sign != "^"))
            result = self._emit(sign, result, right)
        return result

    def _operand(self) -> int:
        if self._peek() is None:
            raise self._error("it ends where a value is expected")
        kind, token = self._tokens[self._position]
        self._position += 1
        if kind == "number":
            try:
                return self._constant(float(token))
            except ValueError:
                raise self._error(f"{token!r} is not a number") from None
        if kind == "name":
            if self._peek() == "(":
                return self._call(token)
            if token in self._definitions:
                return self._definitions[token]
            return self._step(_Step("variable", (), token))
        if token == "-":
            return self._emit("negate", self._operators(_NEGATION))
        if token == "(":
            result = self._operators(0)
            self._expect(")")
            return result
        raise self._error(f"unexpected {token!r}")

    def _call(self, name: str) -> int:
        known = {**{key: n for key, n in ARITY.items() if key.isalnum()}, **self._functions, **self._symbols}
        known.pop("negate", None)
        if name not in known:
            raise self._error(f"unknown function {name!r}; {nearest(name, known)}")
        start = self._position + 1
        self._position = start
        arguments = [self._operators(0)]
        while self._peek() == ",":
            self._position += 1
            arguments.append(self._operators(0))
        self._expect(")")
        if len(arguments) != known[name]:
            raise self._error(f"{name!r} takes {known[name]} arguments; found {len(arguments)}")
        if name in self._symbols:
            text = "".join(token for _, token in self._tokens[start : self._position])
            return self._step(_Step("variable", (), f"{name}({text}"))
        return self._emit(name, *arguments)

    # --- building the program ----------------------------------------------------------------------------------------

    def _step(self, step: _Step) -> int:
        if step not in self._index:
            self._index[step] = len(self._steps)
            self._steps.append(step)
        return self._index[step]

    def _constant(self, value: float) -> int:
        return self._step(_Step("constant", (), value))

    def _value(self, index: int) -> float | None:
        step = self._steps[index]
        return step.content if step.operation == "constant" else None

    def _emit(self, operation: str, *arguments: int) -> int:
        """Add an operation, simplified where that changes no more than rounding."""
        values = [self._value(argument) for argument in arguments]
        if operation in self._functions:
            return self._step(_Step("call", arguments, operation))
        if operation == "cube":
            return self._power(arguments[0], 3)
        if operation == "select" and values[0] is not None:
            return arguments[1 if values[0] else 2]
        if None not in values:
            tensors = [torch.tensor(value, dtype=torch.float64) for value in values]
            return self._constant(FUNCTIONS[operation](*tensors).item())
        if operation == "*" and 0.0 in values:
            return self._constant(0.0)
        if operation == "/" and values[1]:
            return self._emit("*", arguments[0], self._constant(1 / values[1]))
        if operation == "/" and (values[0] == 1 or arguments[1] in self._powers):
            return self._emit("*", arguments[0], self._reciprocal(arguments[1]))
        neutral = {"*": 1.0, "+": 0.0}.get(operation)
        if neutral is not None and neutral in values:
            return arguments[values.index(neutral) == 0]
        if operation == "-" and values[1] == 0:
            return arguments[0]
        if operation == "^" and values[1] is not None:
            exponent = values[1]
            if abs(exponent) <= _LARGEST_POWER and exponent == int(exponent):
                return self._power(arguments[0], int(exponent))
            if abs(exponent) == 0.5:
                root = self._emit("sqrt", arguments[0])
                return root if exponent > 0 else self._reciprocal(root)
        return self._step(_Step(operation, arguments))

    def _reciprocal(self, index: int) -> int:
        """Return 1/x; of a power of x that power of 1/x, so that 1/x is computed once for all of them."""
        base, exponent = self._powers.get(index, (index, 1))
        return self._power(self._emit("recip", base), exponent)

    def _power(self, index: int, exponent: int) -> int:
        if exponent == 0:
            return self._constant(1.0)
        if exponent < 0:
            return self._power(self._emit("recip", index), -exponent)
        if exponent == 1:
            return index
        result = self._emit("square", self._power(index, exponent // 2))
        if exponent % 2:
            result = self._emit("*", result, index)
        self._powers[result] = (index, exponent)
        return result

    def _reachable(self, root: int) -> list[int]:
        found, stack = {root}, [root]
        while stack:
            for argument in self._steps[stack.pop()].arguments:
                if argument not in found:
                    found.add(argument)
                    stack.append(argument)
        return sorted(found)  # an operation stands behind its arguments

    def _compile(self, root: int) -> tuple[list[tuple[int, _Step]], int]:
        """Return the steps that a root needs; a risky branch of a select is a program of its own, run under guard."""
        branches: dict[int, _Step] = {}
        for index in self._reachable(root):
            step = self._steps[index]
            if step.operation == "select":
                programs = tuple(
                    self._compile(branch)
                    if any(self._steps[k].operation in RISKY for k in self._reachable(branch))
                    else None
                    for branch in step.arguments[1:]
                )
                branches[index] = step._replace(content=programs)
        needed, stack = {root}, [root]
        while stack:
            index = stack.pop()
            arguments = self._steps[index].arguments
            if index in branches:
                inline = [a for a, program in zip(arguments[1:], branches[index].content, strict=True) if not program]
                arguments = (arguments[0], *inline)
            for argument in arguments:
                if argument not in needed:
                    needed.add(argument)
                    stack.append(argument)
        return [(index, branches.get(index, self._steps[index])) for index in sorted(needed)], root

    @property
    def variables(self) -> frozenset[str]:
        """The names that `__call__` needs."""
        return frozenset(_names(self._program))

    def require(self, known: Iterable[str]) -> "Expression":
        """Return the expression if it uses no other variables than the known ones, and raise otherwise."""
        known = set(known)
        for name in sorted(self.variables - known):
            raise self._error(f"unknown variable {name!r}; {nearest(name, known)}")
        return self

    # --- evaluation --------------------------------------------------------------------------------------------------

    def __call__(
        self, values: Mapping[str, Operand], functions: Mapping[str, Callable[..., Tensor]] | None = None
    ) -> Operand:
        """Evaluate the expression.

        Args:
            values: of the variables, tensors that broadcast with one another, or numbers.
            functions: the further functions that were announced.

        Returns:
            A tensor, or a number where the expression depends on numbers only.
        """
        return _run(self._program, values, functions or {})


def _names(program: tuple[list[tuple[int, _Step]], int]) -> set[str]:
    found = set()
    for _, step in program[0]:
        if step.operation == "variable":
            found.add(step.content)
        elif step.operation == "select":
            found |= set().union(*(_names(branch) for branch in step.content if branch))
    return found


def _run(
    program: tuple[list[tuple[int, _Step]], int],
    values: Mapping[str, Operand],
    functions: Mapping[str, Callable[..., Tensor]],
) -> Operand:
    steps, root = program
    results: dict[int, Operand] = {}
    for index, (operation, arguments, content) in steps:
        if operation == "constant":
            result = content
        elif operation == "variable":
            result = values[content]
        elif operation == "call":
            result = functions[content](*(results[k] for k in arguments))
        elif operation == "select":
            result = _select(results, arguments, content, values, functions)
        else:
            operands = [results[k] for k in arguments]
            if not any(isinstance(operand, Tensor) for operand in operands):  # variables may be numbers
                operands = [torch.tensor(operand, dtype=torch.float64) for operand in operands]
            result = FUNCTIONS[operation](*operands)
        results[index] = result
    return results[root]


def _select(
    results: Mapping[int, Operand],
    arguments: tuple[int, ...],
    programs: tuple,
    values: Mapping[str, Operand],
    functions: Mapping[str, Callable[..., Tensor]],
) -> Tensor:
    condition = torch.as_tensor(results[arguments[0]]).detach()
    mask = condition != 0
    branches = []
    for argument, program, taken in zip(arguments[1:], programs, (mask, ~mask), strict=True):
        if program:
            branches.append(_run(program, _Guarded(values, taken), functions))
        else:
            branches.append(results[argument])
    if not any(isinstance(branch, Tensor) for branch in branches):
        branches = [torch.as_tensor(branch, dtype=condition.dtype, device=condition.device) for branch in branches]
    return torch.where(mask, *branches)


class _Guarded(dict):
    """Variables whose gradient is set to zero where a branch is not taken, be it infinite or NaN there."""

    def __init__(self, values: Mapping[str, Operand], taken: Tensor) -> None:
        super().__init__()
        self._values, self._taken = values, taken

    def __missing__(self, name: str) -> Operand:
        value = self._values[name]
        if isinstance(value, Tensor) and value.requires_grad:
            value = torch.where(self._taken, value, value.detach())
        self[name] = value
        return value
