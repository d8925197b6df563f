"""Can the weights of an ensemble be trusted, and why: the numbers of `summary` in plain words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["HEADLINES", "UNMIXED_R_HAT", "Check", "Verdict", "verdict"]

Level = Literal["good", "caution", "bad", "note"]

RELIABLE_K = 0.7
FINITE_VARIANCE_K = 0.5
MIXED_R_HAT = 1.01
UNMIXED_R_HAT = 1.1
FEW, VERY_FEW = 100.0, 10.0
"""Effective samples below which error bars are rough, or mean nothing."""
MISSED_FORWARD_ESS = 0.1
MAX_FAILED_FRACTION = 0.01
MAX_Z = 4.0
"""Standard errors between two means of one quantity that chance does not explain."""

HEADLINES = {
    "good": "reliable",
    "caution": "usable with care",
    "bad": "not reliable",
}


@dataclass(frozen=True)
class Check:
    """One diagnostic and what it says.

    Args:
        name: Of the diagnostic.
        value: As text, with its unit.
        level: "good", "caution", "bad", or "note" for what is worth knowing and decides nothing.
        text: What it means, in plain words.
    """

    name: str
    value: str
    level: Level
    text: str


@dataclass(frozen=True)
class Verdict:
    """The judgement of an ensemble and the checks behind it.

    Args:
        level: The worst of the checks: "good", "caution" or "bad".
        text: One sentence.
        checks: What was looked at, in the order of importance.
    """

    level: Level
    text: str
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        """The judgement in two words and the sentence, as `boltzflow analyze` prints it."""
        return f"{HEADLINES[self.level]}: {self.text}"


def verdict(found: Mapping[str, Any]) -> Verdict:
    """Judge an ensemble by its diagnostics.

    A good effective sample size of a generator's own samples proves nothing about what it misses, so that without a
    comparison with reference samples no weighted ensemble is called reliable without reserve.

    Args:
        found: As `summary` returns it; with `mean_energy_z` (standard errors between the mean energies of ensemble and
            reference) that is judged, too.

    Returns:
        The worst level of all checks, the sentence that goes with it, and the checks.
    """
    checks = [*_weight_checks(found), *_chain_checks(found), *_reference_checks(found), *_loss_checks(found)]
    levels = {check.level for check in checks}
    level: Level = "bad" if "bad" in levels else "caution" if "caution" in levels else "good"
    return Verdict(level, _sentence(found, level, checks), tuple(checks))


def _sentence(found: Mapping[str, Any], level: Level, checks: list[Check]) -> str:
    decisive = [check for check in checks if check.level == level]
    if level != "good":
        text = "; ".join(check.text for check in decisive)
        if [check.name for check in decisive] == ["reference"]:
            return f"{'weights are well behaved' if _weighted(found) else 'equal weights'}; {text}"
        return text if _weighted(found) or not _of_chains(found) else f"unweighted samples of chains; {text}"
    if _of_chains(found):
        kind = "weighted" if _weighted(found) else "unweighted"
        return f"{kind} samples of chains that agree; errors include the correlation of their frames"
    if found.get("forward_ess_fraction") is not None:
        return "weights are well behaved, and the generator covers the reference"
    return "weights are well behaved, and averages agree with the reference"


def _of_chains(found: Mapping[str, Any]) -> bool:
    return found.get("n_chains") is not None


def _weighted(found: Mapping[str, Any]) -> bool:
    """Whether the weights differ."""
    return not found["equal_weights"]


def _weight_checks(found: Mapping[str, Any]) -> list[Check]:
    if found["ess"] is None:
        return [Check("effective samples", "none", "bad", "no sample has a weight")]
    ess = found["ess"]
    value = f"{_count(ess)} of {found['n']} ({found['ess_fraction']:.1%})"
    if ess < VERY_FEW:
        level, text = "bad", f"fewer than {VERY_FEW:.0f} effective samples: nothing can be said from these"
    elif ess < FEW:
        level, text = "caution", f"fewer than {FEW:.0f} effective samples: error bars are rough"
    else:
        level, text = "good", "as many unweighted samples would give the same error bars"
    checks = (
        [] if _of_chains(found) and not _weighted(found) else [Check("effective samples (ESS)", value, level, text)]
    )
    if not _weighted(found):
        text = "unweighted samples of chains" if _of_chains(found) else "all samples with a weight have the same"
        return [*checks, Check("weights", "equal", "note", text)]
    k = found["pareto_k"]
    if k is None:
        text = "too few distinct weights in the tail to see whether a few samples carry the weight; draw more"
        checks.append(Check("Pareto k-hat", "unknown", "bad" if ess < VERY_FEW else "caution", text))
    elif k > RELIABLE_K:
        text = f"a few samples carry the weight (k-hat > {RELIABLE_K}); draw more, or train further"
        checks.append(Check("Pareto k-hat", f"{k:.2f}", "bad", text))
    elif k > FINITE_VARIANCE_K:
        text = f"between {FINITE_VARIANCE_K} and {RELIABLE_K} error bars hold, but shrink slowly with more samples"
        checks.append(Check("Pareto k-hat", f"{k:.2f}", "good", text))
    else:
        checks.append(Check("Pareto k-hat", f"{k:.2f}", "good", "the weights have no heavy tail"))
    return checks


def _count(value: float) -> str:
    return f"{value:.0f}" if value >= VERY_FEW else f"{value:.1f}"


def _chain_checks(found: Mapping[str, Any]) -> list[Check]:
    if not _of_chains(found):
        return []
    checks = []
    r_hat, what = found["r_hat"], f"over {found['n_chains']} chain{'s' if found['n_chains'] > 1 else ''}"
    if r_hat is None:
        text = "too few frames, or frames that do not vary, to compare the chains; run longer"
        checks.append(Check("R-hat", "unknown", "caution", text))
    else:
        if r_hat > UNMIXED_R_HAT:
            level, text = "bad", f"the chains disagree (R-hat > {UNMIXED_R_HAT}): they have not mixed; run longer"
        elif r_hat > MIXED_R_HAT:
            level, text = "caution", f"the chains differ a little more than they should (R-hat > {MIXED_R_HAT})"
        else:
            level, text = "good", "the chains agree with each other and each with itself"
        checks.append(Check(f"R-hat {what}", f"{r_hat:.3f}", level, text))
    n = found["n_effective"]
    if n is not None:
        value = f"{_count(n)} of {found['n']}"
        if n < VERY_FEW:
            level, text = "bad", f"fewer than {VERY_FEW:.0f} independent frames: nothing can be said from these"
        elif n < FEW:
            level, text = "caution", f"fewer than {FEW:.0f} independent frames: error bars are rough"
        else:
            level, text = "good", "frames that are as good as independent, by the correlation of the energy"
        checks.append(Check("effective frames", value, level, text))
    if found.get("bulk_ess") is not None and found.get("tail_ess") is not None:
        few = min(found["bulk_ess"], found["tail_ess"]) < FEW
        level = "caution" if few else "good"
        text = (
            f"{f'fewer than {FEW:.0f}' if few else 'enough'} for the centre or the 5 % and 95 % quantiles of the energy"
        )
        value = f"{_count(found['bulk_ess'])} bulk, {_count(found['tail_ess'])} tail"
        checks.append(Check("effective energies", value, level, text))
    if found["n_chains"] == 1:
        text = "one chain can only be compared with itself: a state that it never reached would not show"
        checks.append(Check("chains", "1", "caution", text))
    trips = found.get("round_trips")
    if trips is not None:
        level = "good" if trips >= found["n_chains"] else "caution"
        text = (
            "replicas travel between the coldest and the hottest temperature and back"
            if level == "good"
            else "fewer than one round trip between the temperatures per chain; run longer"
        )
        checks.append(Check("round trips", str(trips), level, text))
    return checks


def _reference_checks(found: Mapping[str, Any]) -> list[Check]:
    checks = []
    forward, z = found.get("forward_ess_fraction"), found.get("mean_energy_z")
    if forward is not None:
        if forward < MISSED_FORWARD_ESS:
            level, text = "bad", "the generator misses part of the reference"
        elif found["ess_fraction"] is not None and forward < 0.5 * found["ess_fraction"]:
            level, text = "caution", "the reference holds regions that the generator visits too rarely"
        else:
            level, text = "good", "the generator covers the reference"
        checks.append(Check("forward ESS, on the reference", f"{forward:.1%}", level, text))
    if z is not None:
        good = abs(z) < MAX_Z
        text = (
            "ensemble and reference have the same mean energy within their errors"
            if good
            else f"the mean energies of ensemble and reference differ by {abs(z):.1f} standard errors"
        )
        checks.append(Check("mean energy against the reference", f"z = {z:+.1f}", "good" if good else "bad", text))
    if forward is None and z is None and not _of_chains(found):
        text = "modes that the generator misses would not show without a reference"
        checks.append(Check("reference", "none", "caution", text))
    return checks


def _loss_checks(found: Mapping[str, Any]) -> list[Check]:
    n, failed, infinite = found["n"], found["n_failed"], found["n_nonfinite"]
    checks = []
    if failed:
        level: Level = "bad" if failed > MAX_FAILED_FRACTION * n else "caution"
        text = f"the model gave NaN or inf in {failed} of {n} rows, which biases every average"
        checks.append(Check("model failures", str(failed), level, text))
    elif not _of_chains(found):
        checks.append(Check("model failures", "0", "good", "the model gave a finite density for every sample"))
    text = "rows of infinite energy have weight zero, which is correct" if infinite else "every energy is finite"
    checks.append(Check("infinite energies", str(infinite), "note", text))
    if found["interrupted"]:
        text = "the run was stopped before all samples were made; those that are here are valid"
        checks.append(Check("interrupted", "yes", "note", text))
    return checks
