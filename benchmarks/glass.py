"""The two-dimensional ternary glass former: swap Monte Carlo, parallel tempering and population annealing.

python benchmarks/glass.py [--threads 1] [--part swap|samplers] [--resume] [--output results.json]

Part one is swap Monte Carlo at the temperatures of the reference table: energy and configurational heat capacity per
particle, errors between independent chains. Part two is how far down from T = 1 two samplers get with the same number
of evaluations, with and without species swaps. Every call counts: the ledger charges a single-particle trial its share
of the pairs of an energy, equilibration at T = 1, burn-in and pilots are in. A temperature is reached where E/N is
within three combined standard errors of swap Monte Carlo, with an error of its own below 0.004.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from _record import record

from boltzflow.generators import find_schedule, smc
from boltzflow.paths import TemperedPath
from boltzflow.run import make_rng
from boltzflow.simulation import ParallelTempering
from boltzflow.state import State
from boltzflow.targets import FramesBase, TernaryLiquid
from boltzflow.transitions import HMC, MetropolisKernel, SpeciesSwap, swap_monte_carlo

N = 43
# T: E/N and c_V with their errors, of two seeds, 1.5 million sweeps each
REFERENCE = {
    1.00: [(-1.8810, 0.0010, 0.907, 0.002), (-1.8795, 0.0010, 0.911, 0.005)],
    0.45: [(-2.4315, 0.0008, 1.106, 0.007), (-2.4292, 0.0010, 1.127, 0.009)],
    0.40: [(-2.4881, 0.0014, 1.132, 0.009), (-2.4875, 0.0013, 1.149, 0.009)],
    0.30: [(-2.6028, 0.0011, 1.179, 0.017), (-2.6041, 0.0017, 1.179, 0.012)],
    0.27: [(-2.6401, 0.0016, 1.204, 0.012), (-2.6391, 0.0019, 1.195, 0.017)],
    0.23: [(-2.6883, 0.0017, 1.231, 0.027), (-2.6899, 0.0017, 1.217, 0.022)],
}
CHAINS, SWEEPS = 128, 10
BURN_IN = {1.00: 400, 0.45: 400, 0.40: 400, 0.30: 600, 0.27: 800, 0.23: 1200}
RECORDS = {1.00: 400, 0.45: 1500, 0.40: 1500, 0.30: 2500, 0.27: 3000, 0.23: 4000}
LADDER = [0.23, 0.27, 0.30, 0.345, 0.40, 0.45, 0.54, 0.65, 0.80, 1.00]
BUDGET, LADDERS, POPULATIONS = 8_000_000, 16, 20
LARGEST_ERROR = 0.004
MOVES = {"plain": 0, "with swaps": 86}


def liquid_at(temperature: float) -> TernaryLiquid:
    """The liquid, all under one name in ledgers."""
    liquid = TernaryLiquid(temperature=temperature).double()
    liquid.name = "liquid"
    return liquid


def jackknife(estimate: Callable[[np.ndarray], float], columns: np.ndarray) -> tuple[float, float]:
    """Value and error of a function of independent columns, leaving one out at a time."""
    n = columns.shape[1]
    left_out = np.array([estimate(np.delete(columns, k, 1)) for k in range(n)])
    return estimate(columns), float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))


def combined(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean of independent estimates, weighted by their errors."""
    weights = np.array([error**-2 for _, error in pairs])
    return float(np.average([value for value, _ in pairs], weights=weights)), float(weights.sum() ** -0.5)


def scored(name: str, value: float, error: float, reference: tuple[float, float]) -> dict[str, float]:
    """An estimate, its reference, and the difference in standard errors of both."""
    z = (value - reference[0]) / np.hypot(error, reference[1])
    return {name: value, f"{name} error": error, f"{name} reference": reference[0],
            f"{name} reference error": reference[1], f"{name} z-score": float(z)}  # fmt: skip


def swapping(temperature: float, start: State) -> tuple[dict, State]:
    """Swap Monte Carlo at one temperature, from the configurations of the one above."""
    began = time.process_time()
    liquid = liquid_at(temperature)
    chains = ParallelTempering(
        liquid, start, temperatures=[temperature], n_chains=CHAINS, n_relax=100 if temperature == 1.0 else 0,
        kernels=swap_monte_carlo(liquid.species, n_sweeps=SWEEPS), seed=1,
    )  # fmt: skip
    chains.burn_in(BURN_IN[temperature])
    n = RECORDS[temperature]
    result = chains.run(n, records_per_frame=n)
    e = (result.observables["reduced_energy"] * temperature / N).numpy()
    energy = jackknife(np.mean, e)
    capacity = jackknife(lambda x: N * float(x.var()) / temperature**2, e)
    reference = [combined([row[k : k + 2] for row in REFERENCE[temperature]]) for k in (0, 2)]
    acceptance = [rates[0] for rates in result.diagnostics["acceptance"]]
    found = {
        "chains": CHAINS,
        "sweeps of every chain": n * SWEEPS,
        "sweeps left out": BURN_IN[temperature] * SWEEPS,
        **scored("E/N", *energy, reference[0]),
        **scored("c_V", *capacity, reference[1]),
        "displacement acceptance": acceptance[0],
        "swap acceptance": acceptance[1],
        "split R-hat": result.diagnostics["series"]["reduced_energy"]["split_r_hat"],
        "effective samples": float(e.var() / energy[1] ** 2),
        "calls": chains.ledger.n_energy(),
        "CPU seconds": time.process_time() - began,
    }
    return found, liquid.state(result.samples["positions"][-1])


def kernels(n_swaps: int) -> list[MetropolisKernel]:
    """A trajectory of ten leapfrog steps, and species swaps."""
    swaps = [SpeciesSwap(liquid_at(1.0).species, n_steps=n_swaps)] if n_swaps else []
    return [HMC(0.02, n_leapfrog=10), *swaps]


def hot_frames(n_swaps: int) -> tuple[State, int]:
    """Frames at T = 1, and their cost."""
    liquid = liquid_at(1.0)
    chains = ParallelTempering(
        liquid, liquid.start(64, make_rng(5)), temperatures=[1.0], n_chains=64, kernels=kernels(n_swaps), seed=6
    )
    chains.burn_in(600)
    result = chains.run(40, sweeps_per_record=8)
    return liquid.state(result.samples["positions"].flatten(0, 1)), chains.ledger.n_energy()


def tempering(n_swaps: int) -> dict:
    """Parallel tempering from T = 1 to 0.23: energies of every rung."""
    began, liquid = time.process_time(), liquid_at(LADDER[0])
    frames, cost = hot_frames(n_swaps)
    rows = torch.linspace(0, len(frames) - 1, len(LADDER) * LADDERS).long()
    chains = ParallelTempering(
        liquid,
        frames.index(rows),
        temperatures=LADDER,
        n_chains=LADDERS,
        kernels=kernels(n_swaps),
        n_relax=0,
        seed=4,
    )
    chains.burn_in(50)
    per_sweep = chains.ledger.n_energy() / 50
    chains.burn_in(max(int(0.2 * BUDGET / per_sweep) - 50, 1))
    energies: list[torch.Tensor] = []
    n = int((BUDGET - cost - chains.ledger.n_energy()) / per_sweep / 2)
    result = chains.run(
        n, sweeps_per_record=2, keep="all", chunk=20, on_chunk=lambda part: energies.append(part.reduced_energies)
    )
    e = (torch.cat(energies) * LADDER[0] / N).unflatten(1, (len(LADDER), LADDERS)).numpy()
    by_rung = {t: jackknife(np.mean, e[:, k]) for k, t in enumerate(LADDER) if t in REFERENCE}
    return {
        "E/N": {str(t): value for t, (value, _) in by_rung.items()},
        "errors": {str(t): error for t, (_, error) in by_rung.items()},
        "calls": cost + chains.ledger.n_energy(),
        "swap rates of the ladder": result.diagnostics["swap_rates"],
        "round trips": result.diagnostics["round_trips"],
        "CPU seconds": time.process_time() - began,
    }


def annealing(n_swaps: int, temperature: float) -> dict:
    """Population annealing from T = 1 to one temperature."""
    began = time.process_time()
    frames, cost = hot_frames(n_swaps)
    base = FramesBase(frames, liquid_at(1.0))
    hot = base.reduced_energy(frames) / N
    cold = liquid_at(temperature)
    path = partial(TemperedPath, beta_0=temperature)
    schedule = find_schedule(
        base, cold, kernels(n_swaps), path=path, cess=0.9, n=250, n_rounds=3, threshold=1.0, seed=7
    )
    spent = cost + schedule.ledger.n_energy()
    per_row = len(schedule) * (12 + 8 / N * n_swaps)
    size = max(int((BUDGET - spent) / per_row / POPULATIONS), 2)
    generator = smc(base, kernels(n_swaps), schedule, threshold=1.0, path=path)
    ensemble = generator.sample(size * POPULATIONS, cold, seed=8, batch_size=size)
    energy = ensemble.mean_reduced_energy()
    return {
        "E/N": energy.value * temperature / N,
        "error": energy.error * temperature / N,
        "E/N of the frames at T = 1": float(hot.mean()),
        "levels": len(schedule),
        "populations": POPULATIONS,
        "size": size,
        "calls": spent + ensemble.provenance.n_energy,
        "rho_t, mean": float(np.mean([f["rho_t"] for f in ensemble.provenance.extra["populations"]])),
        "CPU seconds": time.process_time() - began,
    }


def reached(e: dict[float, tuple[float, float]], truth: dict[float, tuple[float, float]]) -> float | None:
    """The lowest temperature down to which all are right; None where the first one is not."""
    lowest = None
    for t in sorted(e, reverse=True):
        value, error = e[t]
        if error > LARGEST_ERROR or abs(value - truth[t][0]) > 3 * np.hypot(error, truth[t][1]):
            break
        lowest = t
    return lowest


def swap_monte_carlo_part(keep: Callable[..., None], found: dict, states: Path) -> None:
    """The first part, from the highest temperature down."""
    start = liquid_at(1.0).start(CHAINS, make_rng(2))
    for temperature in REFERENCE:
        if str(temperature) in found.get("swap Monte Carlo", {}):
            continue
        if temperature < 1.0:
            start = liquid_at(temperature).state(torch.load(states))
        value, start = swapping(temperature, start)
        torch.save(start["positions"], states)
        keep("swap Monte Carlo", str(temperature), value=value)


def samplers_part(keep: Callable[..., None], found: dict) -> None:
    """The second part."""
    for name, n_swaps in MOVES.items():
        if name not in found.get("parallel tempering", {}):
            keep("parallel tempering", name, value=tempering(n_swaps))
        for temperature in (t for t in REFERENCE if t < 1.0):
            if str(temperature) not in found.get("population annealing", {}).get(name, {}):
                keep("population annealing", name, str(temperature), value=annealing(n_swaps, temperature))


def summary(found: dict) -> dict:
    """Lowest temperature by sampler and moves, and what it was measured with."""
    truth = {float(t): (v["E/N"], v["E/N error"]) for t, v in found["swap Monte Carlo"].items()}
    lowest: dict[str, dict] = {"parallel tempering": {}, "population annealing": {}}
    for name in MOVES:
        ladder, runs = found["parallel tempering"][name], found["population annealing"][name]
        e = {float(t): (v, ladder["errors"][t]) for t, v in ladder["E/N"].items()}
        lowest["parallel tempering"][name] = reached(e, truth)
        e = {float(t): (v["E/N"], v["error"]) for t, v in runs.items()}
        lowest["population annealing"][name] = reached(e, truth)
    return {"calls": BUDGET, "largest error": LARGEST_ERROR, "ladder": LADDER, "lowest temperature": lowest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=["swap", "samplers"], help="only this one; the other goes into the same file")
    parser.add_argument("--resume", action="store_true", help="keep what the output file holds")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    path = Path(arguments.output or Path(__file__).parent / "results" / "glass.json")

    def read() -> dict:
        return json.loads(path.read_text())["results"] if path.exists() else {}

    def keep(*names: str, value: dict) -> None:
        found = read()
        place = found
        for name in names[:-1]:
            place = place.setdefault(name, {})
        place[names[-1]] = value
        record("glass", found, path)
        print(*names, json.dumps(value), flush=True)

    if not arguments.resume:
        path.unlink(missing_ok=True)
    states = path.with_suffix(".pt")  # where swap Monte Carlo goes on at the next temperature
    if arguments.part != "samplers":
        swap_monte_carlo_part(keep, read(), states)
    if arguments.part != "swap":
        samplers_part(keep, read())
    if arguments.part is None:
        keep("settings", value=summary(read()))
        states.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
