"""Recognises the CustomGBForce that openmm.app builds for the OBC1 and OBC2 implicit solvents."""

import math
import re
from typing import Any

import torch

from boltzflow.forcefield.generalized_born import DIELECTRIC_OFFSET, OBC1, OBC2, PROBE_RADIUS, GeneralizedBorn
from boltzflow.forcefield.registry import tensor

__all__ = ["recognise"]

# The expressions of openmm/app/internal/customgbforces.py, without blanks. A CustomGBForce is arbitrary code, so only
# an exact match may be taken for the model of that name.
_INTEGRAL = (
    "select(step(r+sr2-or1),0.5*(1/L-1/U+0.25*(r-sr2^2/r)*(1/(U^2)-1/(L^2))+0.5*log(L/U)/r),0)",
    {"U": "r+sr2", "L": "max(or1,D)", "D": "abs(r-sr2)"},
)
_BORN = {
    "1/(1/or-tanh(0.8*psi+2.909125*psi^3)/radius)": OBC1,
    "1/(1/or-tanh(psi-0.8*psi^2+4.85*psi^3)/radius)": OBC2,
}
_COULOMB = 138.935485  # as openmm/app/internal/customgbforces.py has it, not as NonbondedForce
_SELF = f"-0.5*{_COULOMB}*(1/soluteDielectric-1/solventDielectric)*charge^2/B"
_PAIR = f"-{_COULOMB}*(1/soluteDielectric-1/solventDielectric)*charge1*charge2/f"
_F = "sqrt(r^2+B1*B2*exp(-r^2/(4*B1*B2)))"
_SURFACE = re.compile(rf"([0-9.]+)\*\(radius\+{PROBE_RADIUS}\)\^2\*\(radius/B\)\^6")


def _parse(expression: str) -> tuple[str, dict[str, str]]:
    """Split an expression into its head and its definitions, blanks removed."""
    head, *rest = ["".join(part.split()) for part in expression.split(";")]
    return head, dict(part.partition("=")[::2] for part in rest if part)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def recognise(force: Any, dtype: torch.dtype) -> GeneralizedBorn | None:
    """Return the OBC term of a CustomGBForce that openmm.app built for it, without cutoff or salt, and None for others.

    Args:
        force: an openmm.CustomGBForce.
        dtype: of the parameters.
    """
    if force.getNonbondedMethod() != force.NoCutoff:
        return None
    names = [force.getPerParticleParameterName(k) for k in range(force.getNumPerParticleParameters())]
    if names != ["charge", "or", "sr"] or force.getNumGlobalParameters() or force.getNumTabulatedFunctions():
        return None

    values = [force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())]
    if [(name, kind) for name, _, kind in values] != [
        ("I", force.ParticlePairNoExclusions),
        ("B", force.SingleParticle),
    ]:
        return None
    if _parse(values[0][1]) != _INTEGRAL:
        return None
    head, definitions = _parse(values[1][1])
    offset = {"psi": "I*or", "radius": "or+offset", "offset": str(DIELECTRIC_OFFSET)}
    if head not in _BORN or definitions != offset:
        return None
    alpha, beta, gamma = _BORN[head]

    prefactor, surface, seen = None, 0.0, []
    for k in range(force.getNumEnergyTerms()):
        expression, kind = force.getEnergyTermParameters(k)
        head, definitions = _parse(expression)
        constants = {
            key: _number(definitions.pop(key, ""))
            for key in ("solventDielectric", "soluteDielectric", "kappa", "offset")
        }
        if constants["kappa"] != 0 or not math.isclose(constants["offset"], DIELECTRIC_OFFSET, rel_tol=1e-9):
            return None
        if not constants["solventDielectric"] > 0 or not constants["soluteDielectric"] > 0:
            return None
        prefactor = _COULOMB * (1 / constants["soluteDielectric"] - 1 / constants["solventDielectric"])
        match = _SURFACE.fullmatch(head)
        if match and (kind, definitions) == (force.SingleParticle, {"radius": "or+offset"}):
            surface = float(match[1])
        elif (head, kind, definitions) in (
            (_SELF, force.SingleParticle, {}), (_PAIR, force.ParticlePairNoExclusions, {"f": _F})
        ):  # fmt: skip
            seen.append((head, prefactor))
        else:
            return None
    if sorted(seen) != sorted([(_SELF, prefactor), (_PAIR, prefactor)]):
        return None

    particles = tensor([force.getParticleParameters(k) for k in range(force.getNumParticles())], torch.float64, (3,))
    charge, offset_radius, scaled_radius = particles.T
    return GeneralizedBorn(
        charge=charge.to(dtype),
        offset_radius=offset_radius.to(dtype),
        radius=(offset_radius + DIELECTRIC_OFFSET).to(dtype),
        scaled_radius=scaled_radius.to(dtype),
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        prefactor=prefactor,
        surface=surface,
        engulfed=False,
    )
