"""Custom forces between pairs of atoms."""

from typing import Any

import torch

from boltzflow._typing import Float, Float64, Int, Tensor
from boltzflow.forcefield.box import volume
from boltzflow.forcefield.custom_lennard_jones import recognise_pairs
from boltzflow.forcefield.custom_term import CustomTerm, read_custom
from boltzflow.forcefield.long_range_correction import long_range_correction
from boltzflow.forcefield.operations import Operand
from boltzflow.forcefield.registry import register_force, tensor
from boltzflow.forcefield.term import Term, all_pairs, pair_distances, pair_rows, switching

__all__ = ["CustomPairs", "cutoff_of"]


def cutoff_of(force: Any) -> float:
    """Return the cutoff (nm) of a Custom force between pairs, 0 without one."""
    return 0.0 if force.getNonbondedMethod() == force.NoCutoff else force.getCutoffDistance()._value


class CustomPairs(CustomTerm):
    """Energies of pairs of atoms, functions of their distance ``r`` and of the parameters of both.

    Between the switching distance and the cutoff the energy is multiplied by 1 - 10 t^3 + 15 t^4 - 6 t^5, where t goes
    from 0 to 1.
    """

    uses_pairs = True

    def __init__(
        self,
        *,
        pairs: Int[Tensor, "n_pairs 2"],
        parameter_values: Float[Tensor, "n_atoms n_parameters"],
        global_values: Float[Tensor, "n_globals"],
        table_values: Float[Tensor, "n_table_values"],
        expression: str,
        computed: dict[str, str],
        cutoff: float,
        switch: float,
        parameter_names: tuple[str, ...],
        global_names: tuple[str, ...],
        tables: dict[str, dict[str, Any]],
        periodic: bool = False,
        correction: bool = False,
        counted: Int[Tensor, "n_counted 2"] | None = None,
    ) -> None:
        """Keep the pairs.

        Args:
            pairs: the atoms that interact; the parameters of the first end in 1, those of the second in 2.
            parameter_values: of each atom.
            global_values: of the global parameters.
            table_values: see `CustomTerm`.
            expression: of the energy in kJ/mol.
            computed: name -> expression of further parameters of the atoms.
            cutoff: in nm, 0 without one.
            switch: distance in nm from which the energy is switched off, 0 without switching.
            parameter_names: see `CustomTerm`.
            global_names: see `CustomTerm`.
            tables: see `CustomTerm`.
            periodic: whether distances are those of nearest images in a periodic box.
            correction: whether what the cutoff leaves out is added, over the volume.
            counted: pairs that it counts, see `long_range_correction`; None for all.
        """
        super().__init__(
            {
                "pairs": pairs,
                "parameter_values": parameter_values,
                "global_values": global_values,
                "table_values": table_values,
                "counted": pairs.new_zeros(0, 2) if counted is None else counted,
            },
            parameter_names=parameter_names,
            global_names=global_names,
            tables=tables,
            expression=expression,
            computed=computed,
            cutoff=cutoff,
            switch=switch,
            periodic=periodic,
            correction=correction,
        )
        rows = pair_rows(*pairs.T, len(parameter_values))
        self.register_buffer("rows", rows, persistent=False)
        self._computed = {name: self.parse(text, parameter_names) for name, text in computed.items()}
        names = (*parameter_names, *computed)
        self._expression = self.parse(expression, {"r", *(f"{name}{k}" for name in names for k in (1, 2))})
        missing = None
        if correction:
            missing = long_range_correction(self.at, self.parameter_values, self.counted, cutoff=cutoff, switch=switch)
        self.register_buffer("missing", missing, persistent=False)  # energy times volume

    def energy(
        self,
        x: Float[Tensor, "3 n_atoms batch"],
        r: Float[Tensor, "n_pairs batch"] | None,
        box: Float[Tensor, "3 3 1 _"] | None = None,
    ) -> Float64[Tensor, "batch"]:
        """See `Term.energy`."""
        r = pair_distances(x, *self.pairs.T, box) if r is None else r.index_select(0, self.rows)
        energy = self.at(r, self.pairs)
        cutoff, switch = self.options["cutoff"], self.options["switch"]
        if switch:
            energy = energy * switching(r, switch, cutoff)
        if cutoff:
            energy = torch.where(r < cutoff, energy, 0.0)
        total = self.settle(self.total(energy, x, len(self.rows)), x)
        return total if self.missing is None else total + self.missing / volume(box)[0].double()

    def at(self, r: Float[Tensor, "_ n"], pairs: Int[Tensor, "n_pairs 2"]) -> Operand:
        """Return the energies of pairs of atoms at distances of their own, or of all, in nm, without cutoff."""
        atoms: dict[str, Operand] = dict(zip(self.options["parameter_names"], self.parameter_values.T, strict=True))
        for name, expression in self._computed.items():
            value = torch.as_tensor(self.evaluate(expression, atoms), dtype=r.dtype, device=r.device)
            atoms[name] = value.expand(len(self.parameter_values))
        values: dict[str, Operand] = {"r": r}
        for name, value in atoms.items():
            for k in (0, 1):
                if f"{name}{k + 1}" in self._expression.variables:
                    values[f"{name}{k + 1}"] = value[pairs[:, k], None]
        return self.evaluate(self._expression, values)


def _grouped(force: Any) -> list[tuple[int, int]]:
    """Return the pairs of the interaction groups, excluded or not."""
    pairs = []
    for group in range(force.getNumInteractionGroups()):
        first, second = (set(atoms) for atoms in force.getInteractionGroupParameters(group))
        pairs += [
            (a, b)
            for a in sorted(first)
            for b in sorted(second)
            # A pair whose atoms are both in both sets counts once.
            if a != b and not (a > b and b in first and a in second)
        ]
    return pairs


def _pairs(force: Any, n_atoms: int) -> Tensor:
    """Return the (n, 2) pairs of atoms that interact: all, or those of the groups, without the exclusions."""
    excluded = {tuple(sorted(force.getExclusionParticles(k))) for k in range(force.getNumExclusions())}
    if not force.getNumInteractionGroups():
        i, j = all_pairs(n_atoms)
        kept = torch.ones(len(i), dtype=torch.bool)
        kept[pair_rows(*tensor(sorted(excluded), None, (2,)).T, n_atoms)] = False
        return torch.stack([i[kept], j[kept]], 1)
    return tensor([(a, b) for a, b in _grouped(force) if (min(a, b), max(a, b)) not in excluded], None, (2,))


@register_force("CustomNonbondedForce")
def _convert(force: Any, system: Any, dtype: torch.dtype) -> Term:
    n_atoms, cutoff = system.getNumParticles(), cutoff_of(force)
    pairs = _pairs(force, n_atoms)
    known = recognise_pairs(force, pairs, n_atoms, dtype)
    if known is not None:
        return known
    shared = read_custom(force, "Particle", dtype)
    values = [force.getParticleParameters(k) for k in range(n_atoms)]
    computed = [force.getComputedValueParameters(k) for k in range(force.getNumComputedValues())]
    corrected = force.usesPeriodicBoundaryConditions() and force.getUseLongRangeCorrection()
    counted = tensor(_grouped(force), None, (2,)) if corrected and force.getNumInteractionGroups() else None
    return CustomPairs(
        pairs=pairs,
        parameter_values=tensor(values, dtype, (len(shared["parameter_names"]),)),
        expression=force.getEnergyFunction(),
        computed=dict(computed),
        cutoff=cutoff,
        switch=force.getSwitchingDistance()._value if cutoff and force.getUseSwitchingFunction() else 0.0,
        periodic=force.usesPeriodicBoundaryConditions(),
        correction=corrected and (counted is None or len(counted) > 0),
        counted=counted,
        **shared,
    )
