"""Writes the tables of README.md and docs/results.md from benchmarks/results/*.json.

    python docs/make_results.py [--check]

A table stands between `<!-- table NAME -->` and `<!-- end -->`. With --check nothing is written; the exit status is 1
where a page differs from what would be written.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from results_common import MISSING, Row, load, number, pm, provenance, table
from results_continuous_flows import COMMAND as CONTINUOUS_COMMAND
from results_continuous_flows import (
    COOLED_COMMAND,
    continuous_flows,
    continuous_flows_distances,
    continuous_flows_published,
    cooled_flow,
)
from results_coupling import coupling, flow_matching
from results_depth import depth
from results_divergence import divergence
from results_flow_perturbation import MIXTURE_COMMAND, flow_perturbation, perturbation_mixture
from results_glass import glass, glass_reach
from results_glass_flow import glass_flow, glass_flow_weights
from results_hexapeptide import COMMAND as HEXAPEPTIDE_COMMAND
from results_hexapeptide import hexapeptide, hexapeptide_curve, hexapeptide_maps
from results_images import images, images_metropolis, images_reweighted
from results_torsion_blocks import blocks_cost, blocks_efficiency, blocks_families

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")

OFF_POLICY = "[arXiv:2402.05098](https://arxiv.org/abs/2402.05098), table 1: reported, not confirmed"
QUALITY_COMMAND = "`python benchmarks/alanine_dipeptide.py`"
LITERATURE = "[arXiv:2510.18460](https://arxiv.org/abs/2510.18460), table 1: reported, not confirmed"
ENERGY_ONLY_COMMAND = "python benchmarks/alanine_dipeptide.py --recipe energy_only -n 1000000"
VACUUM_COMMAND = "python benchmarks/vacuum_torsions.py --reference reference.h5 --training alanine_dipeptide_vacuum.h5"
COST_SOURCE = "`boltzflow.io.load_checkpoint(path).cost`"


def cost() -> str:
    """Target evaluations from the first simulation to the shipped checkpoint."""
    path = ROOT / "data" / "alanine_dipeptide" / "checkpoint.pt"
    if not path.is_file():
        return MISSING
    from boltzflow.io import load_checkpoint

    ledger = load_checkpoint(path).cost["ledger"]
    energies, forces = (sum(ledger[kind].values()) / 1e8 for kind in ("energy", "force"))
    return f"{energies:.2f}·10⁸ energies, {forces:.2f}·10⁸ of them with force"


def quality() -> str:
    """Quality of the shipped checkpoint beside published numbers."""
    found = load("alanine_dipeptide")
    names = {
        "reverse": "effective sample size, reverse (Kish, nothing filtered)",
        "k": "Pareto k-hat",
        "forward": "effective sample size, forward (on the reference)",
        "gap": "EUBO − ELBO",
        "log_z": "log Z (one labelling sector)",
        "delta": "F(αL) − F(rest), 0° < φ < 130°",
    }
    values = dict.fromkeys(names, MISSING)
    if found is not None:
        r = found["results"]
        f = r["delta_f_alpha_l"]
        values = {
            "reverse": f"**{100 * r['ess_fraction']:.1f} %**, n = {number(r['n'])}",
            "k": f"{r['pareto_k']:.2f}",
            "forward": f"**{100 * r['forward_ess_fraction']:.1f} %**",
            "gap": f"{pm(r['eubo_minus_elbo'], (r['eubo_error'] ** 2 + r['elbo_error'] ** 2) ** 0.5, 2)} kT",
            "log_z": pm(r["log_z"], r["log_z_error"], 4),
            "delta": f"{pm(f['value'], f['error'], 2)} kT",
        }
    shipped = ROOT / "data" / "alanine_dipeptide" / "reference.json"
    reference = MISSING
    if shipped.is_file():
        p = json.loads(shipped.read_text(encoding="utf-8"))["delta_f_alpha_l"]
        reference = f"{pm(p['value'], p['error'], 2)} kT, {number(p['independent_visits'])} independent visits"
    rows = [(text, values[key], QUALITY_COMMAND) for key, text in names.items()]
    rows.append(("the same by parallel tempering", reference, "`python benchmarks/reference_alanine_dipeptide.py`"))
    rows.append(("evaluations that the checkpoint cost, simulations included", cost(), COST_SOURCE))
    rows += [
        ("literature: reverse ESS, likelihood on MD data", "82 %", LITERATURE),
        ("literature: reverse ESS, best energy-trained flows", "94–98 %", LITERATURE),
    ]
    return table(("alanine dipeptide, shipped checkpoint", "value", "command or source"), rows)


def energy_only() -> str:
    """Quality of the checkpoint trained without any simulation, beside published numbers for such training."""
    found = load("alanine_dipeptide_energy_only")
    if found is None:
        return MISSING
    r = found["results"]
    f, expected = r["delta_f_alpha_l"], r["delta_f_alpha_l_reference"]
    gap = (r["eubo_error"] ** 2 + r["elbo_error"] ** 2) ** 0.5
    default = r["log_z_of_default"]
    ours = "`" + ENERGY_ONLY_COMMAND + "`"
    energies, forces = (r[f"n_{kind}_training"] / 1e6 for kind in ("energy", "force"))
    rows = [
        (
            "effective sample size, reverse (Kish, nothing filtered)",
            f"**{100 * r['ess_fraction']:.1f} %**, n = {number(r['n'])}",
            ours,
        ),
        ("Pareto k-hat", f"{r['pareto_k']:.2f}", ours),
        ("effective sample size, forward (on the reference)", f"**{100 * r['forward_ess_fraction']:.1f} %**", ours),
        ("EUBO − ELBO", f"{pm(r['eubo_minus_elbo'], gap, 2)} kT", ours),
        ("log Z (one labelling sector)", pm(r["log_z"], r["log_z_error"], 4), ours),
        ("the same, checkpoint of the default recipe", pm(default["value"], default["error"], 4), ours),
        ("F(αL) − F(rest), 0° < φ < 130°", f"{pm(f['value'], f['error'], 2)} kT", ours),
        (
            "the same by parallel tempering",
            f"{pm(expected['value'], expected['error'], 2)} kT",
            "`python benchmarks/reference_alanine_dipeptide.py`",
        ),
        (
            "evaluations from the untrained model to the checkpoint",
            f"{energies:.1f}·10⁶ energies, {forces:.1f}·10⁶ of them with force",
            COST_SOURCE,
        ),
        ("literature: CMT, 10⁸ evaluations", "97.7 %", LITERATURE),
        ("literature: TA-BG, 10⁸ evaluations", "95.8 %", LITERATURE),
        ("literature: FAB, 2.1·10⁸ evaluations", "94.8 %", LITERATURE),
        ("literature: reverse KL, 2.6·10⁸ evaluations", "94.1 %", LITERATURE),
    ]
    return table(("alanine dipeptide, from the energy alone", "value", "command or source"), rows)


def speed() -> str:
    """Speeds in one table, each as the ratio to the fastest peer."""
    rows = []
    flows = load("flows")
    for job in ("density", "sampling", "training"):
        value = MISSING
        if flows is not None:
            r = flows["results"]
            ours, ratio = r["samples_per_second"]["boltzflow"][job], r["speedup_over_fastest_other"][job]
            value = f"{number(ours)} /s, {ratio:.1f}× the fastest of zuko, normflows, nflows"
        rows.append((f"spline flow, {job}, samples", value, "`python benchmarks/flows.py`"))
    field, value = load("forcefield"), MISSING
    if field is not None:
        r = field["results"]["alanine_dipeptide (ff96, OBC1 as CustomGBForce)"]
        ours = r["torch"]["compiled float64 batch 1024"]
        ratio = r["torch over the faster OpenMM platform"]["compiled float64 batch 1024"]
        value = f"{number(ours)} /s, {ratio:.0f}× one OpenMM Context"
    rows.append(("force field, energies with forces (float64)", value, "`python benchmarks/forcefield.py`"))
    chains, value = load("parallel_tempering"), MISSING
    if chains is not None:
        r = chains["results"]
        key = "parallel tempering, 768 rows"
        # wall-clock rates of a busy machine favour whichever side ran while it was idle
        ratio = r["over the faster OpenMM platform"][key]["processor time"]
        value = f"{number(r[key]['per second'])} /s, {ratio:.0f}× one OpenMM Context in processor time"
    rows.append(("parallel tempering, force evaluations", value, "`python benchmarks/parallel_tempering.py`"))
    end = load("end_to_end")
    for key, text in (
        ("samples_per_second", "weighted samples, end to end"),
        ("reverse_kl_steps_per_second", "reverse-KL steps of 256 samples"),
    ):
        value = MISSING
        if end is not None:
            one = end["results"]["1 thread"]
            value = f"{number(one[key])} /s, {one['ratio_to_existing'][key]:.1f}× bgflow with bgmol on another machine"
        rows.append((text, value, "`python benchmarks/end_to_end.py`"))
    page, value = load("report"), MISSING
    if page is not None:
        r = page["results"]
        value = f"{r['megabytes']:.1f} MB in {r['seconds_of_the_command']:.0f} s for {number(r['n'])} samples"
    rows.append(("HTML report, the whole command", value, "`python benchmarks/report.py`"))
    rows.append(("any of these on a GPU", "not measured (no GPU)", ""))
    return table(("speed, one CPU thread", "value", "command"), rows)


def flows() -> str:
    """All peers of the flow benchmark."""
    found = load("flows")
    if found is None:
        return MISSING
    rates = found["results"]["samples_per_second"]
    jobs = ("density", "sampling", "training")
    rows = [(name, *(number(r[job]) if job in r else "" for job in jobs)) for name, r in rates.items()]
    first = found["results"]["first_call_seconds"]
    rows.append(("first call of boltzflow (compilation), s", *(f"{first[job]:.1f}" for job in jobs)))
    return table(("samples per second", *jobs), rows)


def forcefield() -> str:
    """Energies with forces per second of three Systems."""
    found = load("forcefield")
    if found is None:
        return MISSING
    systems = {key: r for key, r in found["results"].items() if isinstance(r, dict)}
    rows = []
    for part in ("one OpenMM Context, one thread", "OpenMMPotential, batch 256", "torch"):
        names = dict.fromkeys(name for r in systems.values() for name in r[part])
        prefix = "torch, " if part == "torch" else f"{part}: "
        rows += [
            (f"{prefix}{n}", *(number(r[part][n]) if n in r[part] else "" for r in systems.values())) for n in names
        ]
    return table(("energies with forces per second", *systems), rows)


def scaling() -> str:
    """Energies with forces per second against atoms and batch."""
    found = load("forcefield_scaling")
    head = ("energies with forces per second, one thread", "atoms", "OpenMM", "eager, batch 1", "compiled, batch 1")
    head += ("compiled, batch 16", "compiled, best", "compiled float32, best", "peak memory / bound")
    rows: list[Row] = []
    for name, r in ({} if found is None else found["results"]).items():
        if not isinstance(r, dict):
            continue
        torch, loops = r["torch"], r["one OpenMM Context, one thread"]

        def at(kind: str, batch: str, rates: dict = torch) -> str:
            value = rates[kind].get(batch, "")
            return value if isinstance(value, str) else number(value)

        best = [
            number(max(rate for rate in torch[kind].values() if not isinstance(rate, str)))
            for kind in ("compiled float64", "compiled float32")
        ]
        memory = f"{r['memory']['peak'] / r['memory']['bound']:.2f}" if "memory" in r else ""
        rows.append(
            (
                name,
                str(r["atoms"]),
                number(max(loops.values())),
                at("eager float64", "1"),
                at("compiled float64", "1"),
                at("compiled float64", "16"),
                *best,
                memory,
            )
        )
    return table(head, rows or [(MISSING, *[""] * 8)])


def forcefield_gpu() -> str:
    """Energies with forces per second on a GPU, against the batch."""
    found = load("forcefield_gpu")
    rows = {} if found is None else {key: r for key, r in found["results"].items() if isinstance(r, dict)}
    per_second = {title: row["conformations per second"] for title, row in rows.items()}
    batches = sorted({batch for rates in per_second.values() for batch in rates}, key=int)
    if not rows:
        titles = ("alanine dipeptide, floor 10⁷ /s on one H200", "chignolin, floor 2.5·10⁵ /s on one H200")
        return table(("energies with forces per second", "any batch"), [(t, "not measured (no GPU)") for t in titles])
    lines = [(t, *(number(rates[b]) if b in rates else "" for b in batches)) for t, rates in per_second.items()]
    return table(("energies with forces per second", *(f"batch {b}" for b in batches)), lines)


def parallel_tempering() -> str:
    """Force evaluations per second of parallel tempering."""
    found = load("parallel_tempering")
    if found is None:
        return MISSING
    r = found["results"]
    ratios = r["over the faster OpenMM platform"]
    rows = [
        (
            name,
            number(r[name]["per second"]),
            number(r[name]["per processor second"]),
            f"{ratios[name]['wall clock, per thread']:.0f}×",
        )
        for name in sorted(ratios, key=lambda key: int(re.findall(r"\d+", key)[0]))
    ]
    one = r["one OpenMM Context, one thread"]
    rows += [
        (f"one OpenMM Context, {name}", number(v["per second"]), number(v["per processor second"]), "")
        for name, v in one.items()
    ]
    return table(
        ("energies with forces", "per second", "per processor second", "over the faster OpenMM platform"), rows
    )


def end_to_end() -> str:
    """Weighted samples and reverse-KL steps per second."""
    found = load("end_to_end")
    if found is None:
        return MISSING
    r = found["results"]
    existing = r["existing"]
    keys = ("samples_per_second", "reverse_kl_steps_per_second")
    rows = [("bgflow with bgmol, measured earlier on a 2-core Xeon", *(number(existing[key]) for key in keys))]
    for threads in [key for key in r if "thread" in key]:
        ratio = r[threads]["ratio_to_existing"]
        rows.append((f"boltzflow, {threads}", *(f"{number(r[threads][key])} ({ratio[key]:.1f}×)" for key in keys)))
    return table(("per second", "weighted samples", "reverse-KL steps of 256 samples"), rows)


def path_gradients() -> str:
    """Cost of a reverse-KL step with path gradients, against the plain one."""
    found = load("path_gradients")
    if found is None:
        return MISSING
    r = found["results"]
    rows = [(name, f"{r['milliseconds'][name]:.0f}", f"{ratio:.2f}×") for name, ratio in r["ratio"].items()]
    return table((f"reverse-KL step of {r['batch']} samples", "milliseconds", "of the plain step"), rows)


def difference() -> str:
    """The free energy of another force field, by three paths."""
    found = load("force_field_difference")
    if found is None:
        return MISSING
    names = {
        "learned": "learned: samples of the shipped flow, annealed to the other end",
        "tempered": "tempered: parallel tempering of both ends",
        "mbar": "MBAR over intermediate states, the yardstick",
    }
    rows = []
    for key, text in names.items():
        r = found["results"][key]
        cost = f"{r['n_force'] / 1e6:.1f}·10⁶"
        rows.append((text, f"{pm(r['delta_f'], r['error'], 3)} kT", r["method"], cost, f"{r['seconds']:.0f} s"))
    return table(("F(amber99sbildn + OBC) − F(amber96 + OBC1)", "ΔF", "estimator", "forces", "time"), rows)


def annealed() -> str:
    """Sequential Monte Carlo and parallel tempering on two analytic targets, beside published log Z."""
    found = load("smc")
    rows: list[Row] = []
    for system in ("many_well_32", "gmm40") if found is not None else ():
        for method, r in found["results"][system].items():
            error = pm(r["log Z minus exact"], r["log Z error"], 4) if "log Z error" in r else "none"
            z = f"{r['largest |z| of a mode weight']:.1f}, {r['mean z^2 of the mode weights']:.2f}"
            calls = f"{r['target calls'] / 1e6:.1f}·10⁶"
            cost, where = number(r["calls per effective sample"]), "`python benchmarks/smc.py`"
            rows.append((f"{system}: {method}", error, f"{r['modes found']} of {r['modes']}", z, calls, cost, where))
    published = (
        ("many-well-32: SMC", "14.99 ± 1.08", OFF_POLICY),
        ("many-well-32: best diffusion samplers, importance-weighted", "0.02 ± 0.21 to 0.07 ± 0.17", OFF_POLICY),
        ("many-well-32: FAB with replay buffer", "0.032 ± 0.004", "README of fab-jax: reported, not confirmed"),
        ("many-well-32: GGNS (nested sampling)", "0.29 ± 0.45", OFF_POLICY),
    )
    rows = rows or [(MISSING, *[""] * 6)]
    rows += [(f"literature: {text}", f"abs. {value}", "", "", "", "", source) for text, value, source in published]
    head = (
        "",
        "log Z − exact",
        "modes found",
        "mode weights: largest z, mean z²",
        "target calls",
        "calls per effective sample",
    )
    return table((*head, "command or source"), rows)


def snf_blocks() -> str:
    """Every stochastic block against the exact values of the double well."""
    found = load("snf_blocks")
    if found is None:
        return MISSING
    r = found["results"]
    rows = [("exact, by quadrature", f"{r['exact log Z1/Z0']:.4f}", f"{r['exact P(left)']:.4f}", "", "", "")]
    for name, row in r["blocks"].items():
        published = row["published log Z1/Z0, ess fraction, P(left)"]
        rows.append(
            (
                name.replace("_", " "),
                f"{pm(*row['log Z1/Z0'], 4)} ({row['log Z1/Z0, standard errors off']:+.1f})",
                f"{pm(*row['P(left)'], 4)} ({row['P(left), standard errors off']:+.1f})",
                f"{row['ess fraction']:.3f}",
                f"{row['forces per path']:.0f}",
                "" if published is None else f"{published[0]:.4f}, {published[2]:.4f}, {published[1]:.3f}",
            )
        )
    off = "(standard errors off)"
    return table(
        (
            f"block, n = {number(r['n'])}",
            f"log Z₁/Z₀ {off}",
            f"P(left) {off}",
            "ESS",
            "forces per path",
            "another implementation: log Z₁/Z₀, P(left), ESS",
        ),
        rows,
    )


def snf_double_well() -> str:
    """Error of the free-energy profile of the double well beside the published ones."""
    found = load("snf_double_well")
    if found is None:
        return MISSING
    r = found["results"]

    def spread(value: list) -> str:
        return f"{value[0]:.2f}" if value[1] is None else pm(*value, 2)

    floor = f"{r['floor, exact samples']['error']:.2f}"
    rows = [("exact samples (floor)", "", floor, floor, "100 %", "", "")]
    for name, model in r["models"].items():
        published = model["published"]
        rows.append(
            (
                name,
                str(len(model["runs"])),
                spread(model["error"]),
                f"**{spread(model['error reweighted'])}**",
                f"{100 * model['ess fraction'][0]:.0f} %",
                pm(*published["error"], 2),
                pm(*published["error reweighted"], 2),
            )
        )
    head = ("model", "retrainings", "error", "error, reweighted", "ESS", "published error", "published, reweighted")
    return table(head, rows)


def vacuum_torsions() -> str:
    """Scores of five torsions beside the published ones, path ESS, k-hat and log Z of every model."""
    found = load("vacuum_torsions")
    if found is None:
        return MISSING
    r = found["results"]

    def five(values: list[float], digits: int = 3) -> str:
        return " ".join(f"{value:.{digits}f}" for value in values)

    names = {
        "real_nvp": "RNVP in mixed coordinates, without velocities",
        "stochastic_flow": "the same + MC (SNF)",
        "likelihood": "spline flow, internal coordinates",
        "stochastic_splines": "spline flow + MC, learned steps",
    }
    rows = [(f"{name}, published", five(values, 2), "", "", "", "") for name, values in r["published"].items()]
    for key, name in names.items():
        if (model := r["models"].get(key)) is None:
            rows.append((name, *(MISSING,) * 2, "", "", ""))
            continue
        log_z = model["log z"]
        rows.append(
            (
                name,
                f"**{five(model['generated']['mean'])}**",
                five(model["reweighted"]["mean"]),
                f"{100 * model['path ess fraction']:.1f} %",
                f"{model['pareto k']:.2f}",
                pm(log_z["value"], log_z["error"], 3 if log_z["error"] < 0.02 else 2),
            )
        )
    rows.append(("frames of the training data", five(r["training frames"]["mean"]), "", "", "", ""))
    rows.append(("reference, half against half (floor)", five(r["floor"]["mean"]), "", "", "", ""))
    scores = "φ γ₁ ψ γ₂ γ₃"
    head = ("model", f"generated: {scores}", f"reweighted: {scores}", "path ESS", "k-hat", "log Z")
    return table(head, rows)


def learned_moves() -> str:
    """Visits to αL by chains with and without a generator."""
    found = load("learned_moves")
    if found is None:
        return MISSING
    head = (
        "chains",
        "acceptance",
        "visits to αL",
        "R-hat of αL",
        "visits per 10⁶ evaluations",
        "per second",
        "burn-in",
    )
    rows = []
    for name, row in found["results"].items():
        if not isinstance(row, dict):
            continue
        rate, r_hat = row["acceptance of learned moves"], row["R-hat of alpha_L"]
        rows.append(
            (
                name,
                "" if rate is None else f"{100 * rate:.0f} %",
                f"{row['independent visits']:.1f}",
                "" if r_hat is None else f"{r_hat:.3f}",
                number(row["visits per 1e6 evaluations"]),
                f"{row['visits per processor second']:.1f}",
                f"{row['processor seconds of the burn-in']:.0f} s",
            )
        )
    return table(head, rows)


TABLES: dict[str, Callable[[], str]] = {
    "learned_moves": learned_moves,
    "from learned_moves": lambda: provenance("learned_moves", "python benchmarks/learned_moves.py --seconds 10"),
    "blocks": blocks_efficiency,
    "blocks cost": blocks_cost,
    "blocks families": blocks_families,
    "from blocks": lambda: provenance("torsion_blocks", "python benchmarks/torsion_blocks.py"),
    "vacuum_torsions": vacuum_torsions,
    "from vacuum_torsions": lambda: provenance("vacuum_torsions", VACUUM_COMMAND),
    "snf_blocks": snf_blocks,
    "from snf_blocks": lambda: provenance("snf_blocks", "python benchmarks/snf_blocks.py"),
    "snf_double_well": snf_double_well,
    "from snf_double_well": lambda: provenance("snf_double_well", "python benchmarks/snf_double_well.py"),
    "images": images,
    "images reweighted": images_reweighted,
    "images metropolis": images_metropolis,
    "from images": lambda: provenance("images", "python benchmarks/images.py"),
    "quality": quality,
    "energy_only": energy_only,
    "speed": speed,
    "flows": flows,
    "forcefield": forcefield,
    "scaling": scaling,
    "forcefield_gpu": forcefield_gpu,
    "parallel_tempering": parallel_tempering,
    "end_to_end": end_to_end,
    "path_gradients": path_gradients,
    "coupling": coupling,
    "flow_matching": flow_matching,
    "depth": depth,
    "divergence": divergence,
    "flow_perturbation": flow_perturbation,
    "perturbation_mixture": perturbation_mixture,
    "difference": difference,
    "annealed": annealed,
    "glass": glass,
    "glass reach": glass_reach,
    "from glass": lambda: provenance("glass", "python benchmarks/glass.py"),
    "glass_flow": glass_flow,
    "glass_flow_weights": glass_flow_weights,
    "from glass_flow": lambda: provenance("glass_flow", "python benchmarks/glass_flow.py"),
    "from alanine_dipeptide": lambda: provenance("alanine_dipeptide", "python benchmarks/alanine_dipeptide.py"),
    "continuous flows": continuous_flows,
    "continuous flows distances": continuous_flows_distances,
    "continuous flows published": continuous_flows_published,
    "cooled flow": cooled_flow,
    "from cooled flow": lambda: provenance("cooled_flow", COOLED_COMMAND),
    "from continuous flows": lambda: provenance("continuous_flows", CONTINUOUS_COMMAND),
    "hexapeptide": hexapeptide,
    "hexapeptide curve": hexapeptide_curve,
    "hexapeptide maps": hexapeptide_maps,
    "from hexapeptide": lambda: provenance("hexapeptide", HEXAPEPTIDE_COMMAND),
    "from energy_only": lambda: provenance("alanine_dipeptide_energy_only", ENERGY_ONLY_COMMAND),
    "from flows": lambda: provenance("flows", "python benchmarks/flows.py"),
    "from forcefield": lambda: provenance("forcefield", "python benchmarks/forcefield.py"),
    "from scaling": lambda: provenance("forcefield_scaling", "python benchmarks/forcefield_scaling.py"),
    "from forcefield_gpu": lambda: provenance("forcefield_gpu", "python benchmarks/forcefield_gpu.py FOLDER"),
    "from parallel_tempering": lambda: provenance("parallel_tempering", "python benchmarks/parallel_tempering.py"),
    "from end_to_end": lambda: provenance("end_to_end", "python benchmarks/end_to_end.py"),
    "from annealed": lambda: provenance("smc", "python benchmarks/smc.py"),
    "from path_gradients": lambda: provenance("path_gradients", "python benchmarks/path_gradients.py"),
    "from coupling": lambda: provenance("coupling", "python benchmarks/coupling.py lj13.h5"),
    "from flow_matching": lambda: provenance("flow_matching", "python benchmarks/flow_matching.py dw4.h5"),
    "from depth": lambda: provenance("field_depth", "python benchmarks/field_depth.py lj13.h5"),
    "from divergence": lambda: provenance("exact_divergence", "python benchmarks/exact_divergence.py"),
    "from perturbation_mixture": lambda: provenance("perturbation_mixture", MIXTURE_COMMAND),
    "from flow_perturbation": lambda: provenance("flow_perturbation", "python benchmarks/flow_perturbation.py"),
    "from difference": lambda: provenance("force_field_difference", "python benchmarks/force_field_difference.py"),
}


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def replace(match: re.Match) -> str:
        return f"<!-- table {match['name']} -->\n{TABLES[match['name']]()}\n<!-- end -->"

    return re.sub(r"<!-- table (?P<name>[\w ]+) -->\n.*?<!-- end -->", replace, text, flags=re.DOTALL)


def main() -> int:
    """Write the pages, or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where a page is stale")
    options = parser.parse_args()
    stale = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            stale.append(page)
            if not options.check:
                page.write_text(new, encoding="utf-8")
    names = ", ".join(str(page.relative_to(ROOT)) for page in stale)
    if options.check and stale:
        sys.stderr.write(f"{names}: tables differ from benchmarks/results; run python docs/make_results.py\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
