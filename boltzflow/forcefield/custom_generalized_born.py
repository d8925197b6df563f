"""CustomGBForce in general: values computed for each atom from all others, and energies that depend on them."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.custom_gb import recognise
from boltzflow.forcefield.custom_nonbonded import cutoff_of
from boltzflow.forcefield.custom_term import CustomTerm, read_custom
from boltzflow.forcefield.expressions import Expression
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, all_pairs, pair_distances, pair_rows

__all__ = ["CustomGeneralizedBorn"]

_SINGLE, _PAIR = "single", "pair"
_KINDS = {"SingleParticle": _SINGLE, "ParticlePair": "pair without exclusions", "ParticlePairNoExclusions": _PAIR}


class CustomGeneralizedBorn(CustomTerm):
    """Values computed for each atom, from its own parameters or as sums over all others, and energies of these.

    HCT, OBC, GBn and GBn2 are of this form.

    References:
        OpenMM's documentation of CustomGBForce, whose expressions it takes.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        exclusions: Int[Tensor, "n_exclusions 2"],
        parameter_values: Float[Tensor, "n_atoms n_parameters"],
        global_values: Float[Tensor, "n_globals"],
        table_values: Float[Tensor, "n_table_values"],
        values: tuple[tuple[str, str, str], ...],
        energies: tuple[tuple[str, str], ...],
        cutoff: float,
        parameter_names: tuple[str, ...],
        global_names: tuple[str, ...],
        tables: dict[str, dict[str, Any]],
        periodic: bool = False,
    ) -> None:
        """Keep the parameters and parse the expressions.

        Args:
            exclusions: pairs of atoms that the kind "pair without exclusions" leaves out.
            parameter_values: of each atom.
            global_values: of the global parameters.
            table_values: see `CustomTerm`.
            values: name, expression and kind of each computed value, in the order of computation. The kind is "single",
                "pair" or "pair without exclusions"; a pair adds to the value of its first atom, whose parameters end
                in 1, in both orders.
            energies: expression (kJ/mol) and kind of each term; a pair counts once.
            cutoff: of the pairs in nm, 0 without one.
            parameter_names: see `CustomTerm`.
            global_names: see `CustomTerm`.
            tables: see `CustomTerm`.
            periodic: whether distances are those of nearest images in a periodic box.
        """
        super().__init__(
            {
                "exclusions": exclusions,
                "parameter_values": parameter_values,
                "global_values": global_values,
                "table_values": table_values,
            },
            parameter_names=parameter_names,
            global_names=global_names,
            tables=tables,
            values=values,
            energies=energies,
            cutoff=cutoff,
            periodic=periodic,
        )
        n_atoms = len(parameter_values)
        ij = all_pairs(n_atoms).to(exclusions.device)
        kept = torch.ones(ij.shape[1], dtype=torch.bool, device=ij.device)
        kept[pair_rows(*exclusions.T, n_atoms)] = False
        self.register_buffer("ij", ij, persistent=False)
        self.register_buffer("kept", kept.nonzero()[:, 0], persistent=False)
        names = list(parameter_names)
        self._values: list[tuple[str, Expression, str]] = []
        for name, text, kind in values:
            self._values.append((name, self.parse(text, self._known(names, kind)), kind))
            names.append(name)
        self._energies = [(self.parse(text, self._known(names, kind)), kind) for text, kind in energies]

    @staticmethod
    def _known(names: list[str], kind: str) -> set[str]:
        if kind == _SINGLE:
            return {"x", "y", "z", *names}
        return {"r", *(f"{name}{k}" for name in names for k in (1, 2))}

    def _pairs(self, expression: Expression, atoms: dict[str, Tensor], r: Tensor, i: Tensor, j: Tensor) -> Operand:
        """Return an expression of the pairs (i, j) at the distances ``r``."""
        values: dict[str, Operand] = {"r": r}
        for name, value in atoms.items():
            for k, index in ((1, i), (2, j)):
                if f"{name}{k}" in expression.variables:
                    values[f"{name}{k}"] = value.index_select(0, index)
        result = torch.as_tensor(self.evaluate(expression, values), dtype=r.dtype, device=r.device).expand_as(r)
        return torch.where(r < self.options["cutoff"], result, 0.0) if self.options["cutoff"] else result

    def energy(
        self,
        x: Float[Tensor, "3 n_atoms batch"],
        r: Float[Tensor, "n_pairs batch"] | None,
        box: Float[Tensor, "3 3 1 _"] | None = None,
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        n_atoms = len(self.parameter_values)
        r = pair_distances(x, *self.ij, box) if r is None else r
        atoms: dict[str, Tensor] = dict(
            zip(self.options["parameter_names"], self.parameter_values.T[..., None], strict=True)
        )
        place = dict(zip("xyz", x, strict=True))

        def rows(kind: str) -> tuple[Tensor, Tensor]:
            some = kind != _PAIR and len(self.exclusions) > 0
            return (r.index_select(0, self.kept), self.ij[:, self.kept]) if some else (r, self.ij)

        for name, expression, kind in self._values:
            if kind == _SINGLE:
                value = torch.as_tensor(self.evaluate(expression, {**place, **atoms}), dtype=x.dtype, device=x.device)
                atoms[name] = value if value.ndim == 2 else value.expand(n_atoms, 1)
            else:
                distance, (i, j) = rows(kind)
                target = torch.cat([i, j])
                value = self._pairs(expression, atoms, torch.cat([distance, distance]), target, torch.cat([j, i]))
                atoms[name] = x.new_zeros(n_atoms, x.shape[-1]).index_add(0, target, value)
        energy = torch.zeros(x.shape[-1], dtype=torch.float64, device=x.device)
        for expression, kind in self._energies:
            if kind == _SINGLE:
                energy = energy + self.total(self.evaluate(expression, {**place, **atoms}), x, n_atoms)
            else:
                distance, (i, j) = rows(kind)
                energy = energy + self.total(self._pairs(expression, atoms, distance, i, j), x, len(i))
        return self.settle(energy, x)


@register_force("CustomGBForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    known = recognise(force, dtype)
    if known is not None:
        return known
    shared = read_custom(force, "Particle", dtype)
    kinds = {getattr(force, name): kind for name, kind in _KINDS.items()}
    values = [force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())]
    energies = [force.getEnergyTermParameters(k) for k in range(force.getNumEnergyTerms())]
    rows = [force.getParticleParameters(k) for k in range(force.getNumParticles())]
    exclusions = [force.getExclusionParticles(k) for k in range(force.getNumExclusions())]
    return CustomGeneralizedBorn(
        exclusions=tensor(exclusions, None, (2,)),
        parameter_values=tensor(rows, dtype, (len(shared["parameter_names"]),)),
        values=tuple((name, expression, kinds[kind]) for name, expression, kind in values),
        energies=tuple((expression, kinds[kind]) for expression, kind in energies),
        cutoff=cutoff_of(force),
        periodic=force.usesPeriodicBoundaryConditions(),
        **shared,
    )
