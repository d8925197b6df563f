"""What the checks share: tolerances, z-scores, flat views of a State and directions along its subspace."""

import math
from collections.abc import Mapping

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.paths.path import MixtureLevel
from boltzflow.run import Context, Run
from boltzflow.state import Space, State
from boltzflow.targets.target import Target

__all__ = ["check_z_scores", "difference", "fail", "floating", "observables", "run_at", "tangent", "tolerance_for"]

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}
# probability that a correct implementation fails one call, over all of its statistics
FALSE_ALARM = 1e-4


def fail(message: str) -> None:
    """Raise the AssertionError of a failed check."""
    raise AssertionError(message)


def tolerance_for(state: State, tolerance: float | None) -> float:
    """The tolerance that was given, or the default of the dtype."""
    return TOLERANCE[state.dtype] if tolerance is None else tolerance


def run_at(target: Target, rng: torch.Generator, context: Context | None = None) -> Run:
    """A run whose level is the Target itself, for Transitions that are tested outside a Generator."""
    return Run(rng, context, level=MixtureLevel(((1.0, target),)))


def floating(state: State) -> dict[str, Tensor]:
    """The floating-point fields."""
    return {name: value for name, value in state.fields.items() if value.is_floating_point()}


def difference(a: State, b: State) -> tuple[Tensor, str]:
    """Largest |a − b| / (1 + |b|) of every row, angles modulo 2π, and the field that holds the overall largest.

    Returns:
        Differences of shape (batch,), float64, NaN counted as inf; and the field.
    """
    worst, name = None, ""
    for key, value in floating(b).items():
        if key not in a:
            fail(f"field {key!r} is missing; found {sorted(a.fields)}.")
        delta = (a[key].double() - value.double()).flatten(1)
        if b.spaces[key].kind in ("circle", "mixed"):
            wrapped = torch.remainder(delta + math.pi, 2 * math.pi) - math.pi
            delta = torch.where(wrapped.abs() < delta.abs(), wrapped, delta)
        rows = (delta.abs() / (1 + value.double().flatten(1).abs())).amax(1)
        rows = torch.nan_to_num(rows, nan=torch.inf)
        if worst is None or rows.max() > worst.max():
            name = key
        worst = rows if worst is None else torch.maximum(worst, rows)
    return worst, name


def tangent(state: State) -> Float[Tensor, "batch entries d"]:
    """Orthonormal directions along which the floating-point fields can move, over their flattened entries.

    All entries are free unless the Space has fewer dimensions than entries: unit vectors ("sphere") and positions
    (…, N, D) of zero mean are understood.

    Raises:
        ValueError: If a Space with a smaller dimension is neither.
    """
    blocks = [_tangent_of(name, value, state.spaces[name]) for name, value in floating(state).items()]
    entries, free = sum(b.shape[1] for b in blocks), sum(b.shape[2] for b in blocks)
    result = torch.zeros((len(state), entries, free), dtype=torch.float64, device=state.device)
    i = j = 0
    for block in blocks:
        result[:, i : i + block.shape[1], j : j + block.shape[2]] = block
        i, j = i + block.shape[1], j + block.shape[2]
    return result


def _tangent_of(name: str, value: Tensor, space: Space) -> Tensor:
    n, entries = len(value), math.prod(space.shape)
    eye = torch.eye(entries, dtype=torch.float64, device=value.device)
    if space.dimension == entries:
        return eye.expand(n, entries, entries)
    if space.kind == "sphere" and space.dimension == entries // space.shape[-1] * (space.shape[-1] - 1):
        k = space.shape[-1]
        vectors = value.double().reshape(-1, k, 1)
        directions = torch.linalg.qr(vectors, mode="complete").Q[:, :, 1:].reshape(n, entries // k, k, k - 1)
        return torch.stack([torch.block_diag(*row) for row in directions])
    if len(space.shape) > 1 and space.dimension == entries - entries // space.shape[-2]:
        *sets, size, dim = space.shape
        centred = torch.eye(size, dtype=torch.float64) - 1 / size
        basis = torch.linalg.eigh(centred).eigenvectors[:, 1:].contiguous().to(value.device)
        one_set = torch.kron(basis, torch.eye(dim, dtype=torch.float64, device=value.device))
        many = torch.eye(math.prod(sets), dtype=torch.float64, device=value.device)
        return torch.kron(many, one_set).expand(n, -1, -1)
    raise ValueError(
        f"field {name!r}: {space.dimension} of {entries} entries are free on a {space.kind!r}; "
        "only unit vectors and mean-free positions are understood here."
    )


def observables(state: State, reference: State) -> dict[str, Tensor]:
    """Bounded functions of every entry, scaled by the spread of a reference State; shape (batch,), float64 each."""
    result = {}
    for name, value in floating(state).items():
        x, ref = value.double().flatten(1), reference[name].double().flatten(1)
        if state.spaces[name].kind not in ("circle", "mixed"):
            x = (x - ref.mean(0)) / ref.std(0).clamp_min(1e-300)
        for i in range(x.shape[1]):
            result[f"sin {name}[{i}]"] = x[:, i].sin()
            result[f"cos {name}[{i}]"] = x[:, i].cos()
    return result


def check_z_scores(what: str, mean: Mapping[str, float], error: Mapping[str, float], *, expected: float = 0.0) -> None:
    """Compare means with their expected value, allowing for the number of statistics looked at.

    Raises:
        AssertionError: If one is further away than chance allows.
    """
    limit = -torch.special.ndtri(torch.tensor(FALSE_ALARM / 2 / len(mean), dtype=torch.float64)).item()
    scores = {}
    for name, value in mean.items():
        off = abs(value - expected)
        scores[name] = off / error[name] if error[name] > 0 else (0.0 if off < 1e-12 else math.inf)
        if math.isnan(scores[name]):
            scores[name] = math.inf
    name = max(scores, key=scores.__getitem__)
    if scores[name] > limit:
        fail(
            f"{what}: {name} is {mean[name]:.6g} ± {error[name]:.2g} where {expected:g} is expected, "
            f"{scores[name]:.1f} standard errors away (limit {limit:.1f} for {len(mean)} statistics)."
        )
