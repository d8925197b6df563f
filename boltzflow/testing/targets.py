"""Checks of Targets: shapes, forces, contexts, NaN, exact samplers, normalisation."""

import math
from collections.abc import Sequence

import torch

from boltzflow._typing import Float64, Tensor
from boltzflow.run import Context
from boltzflow.state import State
from boltzflow.targets.target import Target
from boltzflow.testing._compare import check_z_scores, fail, floating, tangent

__all__ = ["assert_force", "assert_normalised", "assert_sampler", "assert_target"]


def assert_target(
    target: Target, rng: torch.Generator, *, state: State | None = None, contexts: Sequence[Context | None] = (None,)
) -> None:
    """Check the contract of a Target at given points.

    One real energy per row, in both dtypes; rows do not depend on each other; a NaN coordinate never gets a finite
    energy; forces as in `assert_force`, under every context.

    Args:
        target: What is tested.
        rng: Random stream.
        state: At least two points of its support; None draws them from its sampler.
        contexts: Every context that is to be tried, each passed to energy and force.

    Raises:
        AssertionError: If the contract is broken.
    """
    state = (target.sample(8, rng, contexts[0]) if state is None else state).to(dtype=torch.float64)
    if len(state) < 2:
        raise ValueError(f"assert_target: expected at least 2 points, got {len(state)}.")
    for context in contexts:
        with torch.no_grad():
            _assert_energy(target, state, context)
        assert_force(target, state, rng=rng, context=context)


def _assert_energy(target: Target, state: State, context: Context | None) -> None:
    u = target.reduced_energy(state, context)
    if u.shape != (len(state),) or not u.is_floating_point():
        fail(f"{target.name}: expected a real energy of shape ({len(state)},), got {u.dtype} {tuple(u.shape)}.")
    if torch.isnan(u).any() or (u == -torch.inf).any():
        fail(f"{target.name}: NaN or −inf energy at points of the support: {u.tolist()}.")
    single = target.reduced_energy(state.to(dtype=torch.float32), context).double()
    _compare(target, "energy of a float32 State", single, u, 1e-3)
    order = torch.arange(len(state) - 1, -1, -1, device=state.device)
    reverse = target.reduced_energy(state.index(order), context)
    _compare(target, "energy of the rows in reverse order", reverse, u[order], 1e-9)
    for name, value in floating(state).items():
        if name not in target.fields:
            continue
        spoilt = value.clone()
        spoilt[0].view(-1)[0] = torch.nan
        v = target.reduced_energy(state.replace(**{name: spoilt}), context)
        if torch.isfinite(v[0]) or v[0] == -torch.inf:
            fail(f"{target.name}: a NaN in field {name!r} gives the energy {v[0].item()}; expected NaN or +inf.")
        _compare(target, f"energy of the other rows when row 0 of {name!r} is NaN", v[1:], u[1:], 1e-9)


def _compare(target: Target, what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    off = (found - expected).abs() / expected.abs().clamp_min(1.0)
    off = torch.where(found == expected, 0.0, torch.nan_to_num(off, nan=torch.inf))
    row = int(off.argmax())
    if off[row] > tolerance:
        fail(
            f"{target.name}: {what} is {found[row].item():.10g} in row {row}, expected {expected[row].item():.10g} "
            f"(relative tolerance {tolerance:g})."
        )


def assert_force(
    target: Target,
    state: State,
    *,
    rng: torch.Generator,
    context: Context | None = None,
    n_directions: int = 4,
    tolerance: float = 1e-6,
) -> None:
    """Check `energy_and_force` against `reduced_energy` and its five-point differences along random directions.

    Rows whose energy is not finite at a displaced point (the edge of a support) are left out.

    Args:
        target: What is tested, in float64.
        state: Points of its support, float64.
        rng: Random stream.
        context: Passed on.
        n_directions: Random directions, over all fields at once.
        tolerance: On |ΔF·v| / (1 + |F|).

    Raises:
        AssertionError: If energy or force are wrong, attached to autograd, or of the wrong shape.
    """
    u = target.reduced_energy(state, context).detach()
    energy, force = target.energy_and_force(state, context)
    _compare(target, "energy of energy_and_force", energy, u, 1e-9)
    values = {name: value for name, value in floating(state).items() if name in target.fields}
    if set(values) - set(force):
        fail(f"{target.name}: energy_and_force lacks fields {sorted(set(values) - set(force))}.")
    for name, value in values.items():
        if force[name].shape != value.shape or force[name].dtype != value.dtype:
            fail(
                f"{target.name}: force of {name!r} is {force[name].dtype} {tuple(force[name].shape)}, "
                f"expected {value.dtype} {tuple(value.shape)}."
            )
    if energy.requires_grad or any(f.requires_grad for f in force.values()):
        fail(f"{target.name}: energy_and_force must return detached tensors.")
    norm = torch.cat([force[name].flatten(1) for name in values], 1).norm(dim=1)
    for _ in range(n_directions):
        v = {
            name: torch.randn(x.shape, dtype=x.dtype, device=rng.device, generator=rng).to(x.device)
            for name, x in values.items()
        }
        length = torch.cat([d.flatten(1) for d in v.values()], 1).norm(dim=1)
        v = {name: d / length.reshape(-1, *[1] * (d.ndim - 1)) for name, d in v.items()}
        along = sum((force[name] * v[name]).flatten(1).sum(1) for name in values)
        best = torch.full_like(along, torch.inf)
        for h in (1e-2, 1e-3, 1e-4, 1e-5):  # the best step depends on the stiffness of the row
            slope = _slope(target, state, values, v, h, context)
            best = torch.minimum(best, torch.nan_to_num((along + slope).abs(), nan=torch.inf) / (1 + norm))
        usable = torch.isfinite(slope) & torch.isfinite(norm)
        bad = usable & (best > tolerance)
        if bad.any():
            row = int((best * bad).argmax())
            fail(
                f"{target.name}: force along a random direction is {along[row].item():.8g} in row {row}, but "
                f"differences of the energy give {-slope[row].item():.8g} (context {context}; tolerance {tolerance:g} "
                "of 1 + |F|)."
            )


def _slope(
    target: Target, state: State, values: dict[str, Tensor], v: dict[str, Tensor], h: float, context: Context | None
) -> Float64[Tensor, " batch"]:
    def at(k: int) -> Tensor:
        displaced = state.replace(**{name: x + k * h * v[name] for name, x in values.items()})
        with torch.no_grad():
            return target.reduced_energy(displaced, context).double()

    return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / (12 * h)


def _flat(target: Target, state: State) -> tuple[Tensor, Tensor]:
    """The Target's fields in orthonormal coordinates of their subspace, and the frame (entries, d) they refer to."""
    own = State({name: state[name] for name in target.fields}, target.fields)
    frame = tangent(own.index(slice(0, 1)))[0]
    return torch.cat([own[name].double().flatten(1) for name in target.fields], 1) @ frame, frame


def assert_sampler(target: Target, *, n: int, rng: torch.Generator, context: Context | None = None) -> None:
    """Check that exact samples follow the energy: Stein's identity, by z-score.

    E[φ F + φ′] = 0 along every coordinate for φ(x) = x and sin x (scaled by the spread of the samples; sin x and cos x
    on circles). It needs no normalisation and sees a wrong width, force or temperature in any dimension.

    Args:
        target: With an exact sampler; Stein's identity is tried on lines alone or circles alone (a hard edge would add
            boundary terms).
        n: Number of samples.
        rng: Random stream.
        context: Passed on.

    Raises:
        AssertionError: If samples and energy disagree, the sampler ignores its stream, or an energy is not finite.
    """
    seeds = [torch.Generator(device=rng.device).manual_seed(seed) for seed in (1, 1, 2)]
    first, repeated, other = (target.sample(2, seed, context) for seed in seeds)
    for name in floating(first):
        if not torch.equal(first[name], repeated[name]):
            fail(f"{target.name}: sample gives different {name!r} for the same random stream.")
        if target.measure != "counting" and torch.equal(first[name], other[name]):
            fail(f"{target.name}: sample gives the same {name!r} whatever the random stream.")
    state = target.sample(n, rng, context).to(dtype=torch.float64)
    if len(state) != n:
        fail(f"{target.name}: sample({n}) returned {len(state)} rows.")
    energy, force = target.energy_and_force(state, context)
    if not torch.isfinite(energy).all():
        fail(f"{target.name}: {int((~torch.isfinite(energy)).sum())} of {n} exact samples have a non-finite energy.")
    kinds = {space.kind for space in target.fields.values()}
    if target.measure == "counting" or kinds not in ({"line"}, {"circle"}):
        return
    x, frame = _flat(target, state)
    f = torch.cat([force[name].double().flatten(1) for name in target.fields], 1) @ frame
    if kinds == {"line"}:
        scale = x.std(0)
        z, f = (x - x.mean(0)) / scale, f * scale
        terms = {"x": z * f + 1, "sin x": z.sin() * f + z.cos()}
    else:
        terms = {"sin x": x.sin() * f + x.cos(), "cos x": x.cos() * f - x.sin()}
    values = {
        f"E[φF + φ'] for φ = {phi}, coordinate {i}": column
        for phi, term in terms.items()
        for i, column in enumerate(term.unbind(1))
    }
    check_z_scores(
        f"{target.name}: samples against the energy",
        {name: t.mean().item() for name, t in values.items()},
        {name: t.std().item() / math.sqrt(n) for name, t in values.items()},
    )


def assert_normalised(
    target: Target,
    *,
    n: int,
    rng: torch.Generator,
    context: Context | None = None,
    proposal: Target | None = None,
    resolution: float = 0.05,
) -> None:
    """Check `log_z` by Bennett's acceptance ratio between exact samples and a proposal of known density, by z-score.

    Args:
        target: With `log_z` and an exact sampler.
        n: Number of samples from each.
        rng: Random stream.
        context: Passed on.
        proposal: A Target with `log_z` and a sampler that overlaps; None = an adaptive kernel density estimate of other
            exact samples (uniform on circles), which overlaps well in up to about four dimensions.
        resolution: The standard error of log Z must come out below this.

    Raises:
        AssertionError: If log Z is wrong, or the overlap is too small to tell.

    References:
        Bennett, J. Comput. Phys. 22, 245 (1976).
    """
    if target.log_z is None:
        raise ValueError(f"{target.name}: log Z is unknown, so there is nothing to check.")
    state = target.sample(n, rng, context).to(dtype=torch.float64)
    if proposal is not None:
        other = proposal.sample(n, rng, context).to(dtype=torch.float64)
        log_q = [-proposal.reduced_energy(s, context).double() - proposal.log_z for s in (state, other)]
    else:
        other, log_q = _default_proposal(target, state, n, rng, context)
    with torch.no_grad():
        log_p = [-target.reduced_energy(s, context).double() - target.log_z for s in (state, other)]
    here, there = (p - q for p, q in zip(log_p, log_q, strict=True))
    a, b = torch.sigmoid(-here), torch.sigmoid(there)
    slope = ((a * (1 - a)).mean() + (b * (1 - b)).mean()).item()
    error = math.sqrt((a.var() + b.var()).item() / n) / slope if slope > 1e-9 else math.inf
    if not error < resolution:
        fail(
            f"{target.name}: log Z could be told to ± {error:.2g} only; pass a proposal that overlaps better, or take "
            "more samples."
        )
    # b counts mass at the proposal: an energy too low (log_z given too low) makes it too large
    off = (b.mean() - a.mean()).item() / slope
    check_z_scores(
        f"{target.name}: normalisation", {"log Z": target.log_z + off}, {"log Z": error}, expected=target.log_z
    )


def _default_proposal(
    target: Target, state: State, n: int, rng: torch.Generator, context: Context | None
) -> tuple[State, list[Tensor]]:
    kinds = {space.kind for space in target.fields.values()}
    if not (kinds <= {"line", "interval"} or kinds == {"circle"}):
        raise ValueError(f"{target.name}: there is no default proposal on {sorted(kinds)}; pass one.")
    x, frame = _flat(target, state)
    d = x.shape[1]

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, device=rng.device, generator=rng).to(x.device)

    if kinds == {"circle"}:
        u = torch.rand((n, d), dtype=torch.float64, device=rng.device, generator=rng).to(x.device)
        log_q = torch.full((n,), -d * math.log(2 * math.pi), dtype=torch.float64, device=x.device)
        return _unflat(target, math.pi - 2 * math.pi * u, frame), [log_q, log_q]
    centres = _flat(target, target.sample(400, rng, context))[0]
    scale = centres.std(0)
    # kernels as wide as the distance to the tenth neighbour follow modes of any width
    width = torch.cdist(centres / scale, centres / scale).kthvalue(11, 1).values
    pick = torch.randint(len(centres), (n,), device=rng.device, generator=rng).to(x.device)
    y = centres[pick] + width[pick, None] * scale * noise(n, d)

    def log_density(points: Tensor) -> Tensor:
        distance = torch.cdist(points / scale, centres / scale, compute_mode="donot_use_mm_for_euclid_dist")
        squares = (distance / width) ** 2
        constant = d * (width.log() + 0.5 * math.log(2 * math.pi)) + scale.log().sum() + math.log(len(centres))
        return torch.logsumexp(-0.5 * squares - constant, 1)

    return _unflat(target, y, frame), [log_density(x), log_density(y)]


def _unflat(target: Target, x: Tensor, frame: Tensor) -> State:
    flat = x @ frame.T
    sizes = [math.prod(space.shape) for space in target.fields.values()]
    parts = torch.split(flat, sizes, 1)
    values = {n: p.reshape(len(x), *s.shape) for (n, s), p in zip(target.fields.items(), parts, strict=True)}
    return State(values, target.fields)
