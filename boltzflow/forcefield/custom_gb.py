"""Recognises the CustomGBForce that openmm.app builds for the OBC1, OBC2, GBn and GBn2 implicit solvents."""

import math
import re
from typing import Any

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.forcefield.generalized_born import OBC1, OBC2, PROBE_RADIUS, GeneralizedBorn
from boltzflow.forcefield.registry import tensor

__all__ = ["recognise"]

# The expressions of openmm/app/internal/customgbforces.py, without blanks. A CustomGBForce is arbitrary code, so only
# an exact match may be taken for the model of that name.
_SPHERES = {"U": "r+sr2", "L": "max(or1,D)", "D": "abs(r-sr2)"}
_INTEGRAL = "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0)"
_NECK = (
    "step(radius1+radius2+neckCut-r)*getm0(radindex1,radindex2)/(1+100*(r-getd0(radindex1,radindex2))^2+"
    "0.3*1000000*(r-getd0(radindex1,radindex2))^6)"
)
_NECK_DEFINITIONS = {"Ineck": _NECK, "Ivdw": _INTEGRAL, **_SPHERES, "radius1": "or1+offset", "radius2": "or2+offset"}
_GBN = (1.09511284, 1.907992938, 2.50798245)
_BORN = {
    "1/(1/or-tanh(0.8*psi+2.909125*psi^3)/radius)": OBC1,
    "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)": OBC2,
    "1/(1/or-tanh(1.09511284*psi-1.907992938*psi^2+2.50798245*psi^3)/radius)": _GBN,
    "1/(1/or-tanh(alpha*psi-beta*psi^2+gamma*psi^3)/radius)": None,  # of each atom
}
_COULOMB = 138.935485  # as openmm/app/internal/customgbforces.py has it, not as NonbondedForce
_SELF = f"-0.5*{_COULOMB}*(1/soluteDielectric-1/solventDielectric)*charge^2/B"
_PAIR = f"-{_COULOMB}*(1/soluteDielectric-1/solventDielectric)*charge1*charge2"
_F = "sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
_SURFACE = re.compile(rf"([0-9.]+)\*\(radius\+{PROBE_RADIUS}\)\^2\*\(radius/B\)\^6")


def _parse(expression: str) -> tuple[str, dict[str, str]]:
    """Split an expression into its head and its definitions, blanks removed."""
    head, *rest = ["".join(part.split()) for part in expression.split(";")]
    return head, dict(part.partition("=")[::2] for part in rest if part)


def _numbers(definitions: dict[str, str], names: tuple[str, ...]) -> list[float]:
    """Take the definitions of these names out and return their numbers, NaN where they are none."""
    found = []
    for name in names:
        try:
            found.append(float(definitions.pop(name, "")))
        except ValueError:
            found.append(math.nan)
    return found


def _neck(force: Any, scale: float) -> Float[Tensor, "n_kinds n_kinds 2"] | None:
    """Return the tables of the necks, if they are what they should be."""
    tables = {force.getTabulatedFunctionName(k): force.getTabulatedFunction(k) for k in range(2)}
    if set(tables) != {"getd0", "getm0"} or {type(table).__name__ for table in tables.values()} != {
        "Discrete2DFunction"
    }:
        return None
    columns = []
    for name in ("getd0", "getm0"):
        n, m, values = tables[name].getFunctionParameters()
        if n != m:
            return None
        columns.append(torch.tensor(values, dtype=torch.float64).reshape(n, n).T)
    return torch.stack([columns[0], scale * columns[1]], -1)


def recognise(force: Any, dtype: torch.dtype) -> GeneralizedBorn | None:
    """Return the term of a CustomGBForce that openmm.app built without salt, and None for others.

    Args:
        force: an openmm.CustomGBForce.
        dtype: of the parameters.
    """
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    values = [force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())]
    kinds = [("I", force.ParticlePairNoExclusions), ("B", force.SingleParticle)]
    if (
        force.getNumGlobalParameters()
        or names[:3] != ["charge", "or", "sr"]
        or [(name, kind) for name, _, kind in values] != kinds
    ):
        return None

    head, definitions = _parse(values[1][1])
    (offset,) = _numbers(definitions, ("offset",))
    if head not in _BORN or definitions != {"psi": "I*or", "radius": "or+offset"} or not 0 < offset < 1:
        return None
    same = _BORN[head]

    head, definitions = _parse(values[0][1])
    reach, neck = 0.0, torch.zeros(0, 0, 2, dtype=torch.float64)
    if (head, definitions) == (_INTEGRAL, _SPHERES):
        if names[3:] or force.getNumTabulatedFunctions() or same is None:
            return None
    else:
        scale, reach, own_offset = _numbers(definitions, ("neckScale", "neckCut", "offset"))
        if (head, definitions) != ("Ivdw+neckScale*Ineck", _NECK_DEFINITIONS) or own_offset != offset:
            return None
        if names[3:] != ([] if same else ["alpha", "beta", "gamma"]) + ["radindex"]:
            return None
        neck = _neck(force, scale) if force.getNumTabulatedFunctions() == 2 else None
        if neck is None or not reach > 0 or not scale > 0:
            return None

    cutoff, pair = 0.0, f"{_PAIR}/f"
    if force.getNonbondedMethod() != force.NoCutoff:
        cutoff = force.getCutoffDistance()._value
        pair = f"{_PAIR}*(1/f-{1 / cutoff})"
    surface, seen = 0.0, []
    for k in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(k)
        head, definitions = _parse(expression)
        solvent, solute, kappa, own_offset = _numbers(
            definitions, ("solventDielectric", "soluteDielectric", "kappa", "offset")
        )
        if cutoff and _numbers(definitions, ("cutoff",)) != [cutoff]:
            return None
        if kappa != 0 or own_offset != offset or not solvent > 0 or not solute > 0:
            return None
        match = _SURFACE.fullmatch(head)
        if match and (kind, definitions) == (force.SingleParticle, {"radius": "or+offset"}):
            surface += float(match[1])
        elif (head, kind, definitions) in (
            (_SELF, force.SingleParticle, {}), (pair, force.ParticlePairNoExclusions, {"f": _F})
        ):  # fmt: skip
            seen.append((head, _COULOMB * (1 / solute - 1 / solvent)))
        else:
            return None
    if len(seen) != 2 or sorted(head for head, _ in seen) != sorted([_SELF, pair]) or seen[0][1] != seen[1][1]:
        return None

    rows = tensor(
        [force.getParticleParameters(k) for k in range(force.getNumParticles())], torch.float64, (len(names),)
    )
    charge, offset_radius, scaled_radius = rows.T[:3]
    kind = rows[:, -1].round().long() if len(neck) else torch.zeros(len(rows), dtype=torch.int64)
    if len(neck) and (kind.min() < 0 or kind.max() >= len(neck)):
        return None
    coefficients = rows[:, 3:6] if same is None else torch.tensor(same, dtype=torch.float64).expand(len(rows), 3)
    return GeneralizedBorn(
        charge=charge.to(dtype),
        radius=(offset_radius + offset).to(dtype),
        scale=(scaled_radius / offset_radius).to(dtype),
        coefficients=coefficients.to(dtype),
        kind=kind,
        neck=neck.to(dtype),
        prefactor=torch.tensor(seen[0][1], dtype=dtype),
        surface=torch.tensor(surface, dtype=dtype),
        offset=offset,
        reach=reach,
        engulfed=False,
        cutoff=cutoff,
        periodic=force.usesPeriodicBoundaryConditions(),
    )
