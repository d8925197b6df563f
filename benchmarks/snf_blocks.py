"""The block test: every stochastic block annealed along the double well, against the exact log Z and P(left).

python benchmarks/snf_blocks.py [--n 400000] [--output results.json]

40 levels of 5 steps from exp(-|x|^2/2) to the double well, no flow, no resampling. The last row is a drifted proposal
accepted with exp(-delta u) alone, which leaves another density invariant: it must miss.
"""

import argparse
import math
import time

import torch
from _record import record

from boltzflow.generators import BLOCKS, Generator, stochastic_block
from boltzflow.targets import DoubleWell, Gaussian
from boltzflow.transitions import DrawVelocities, DropVelocities, MetropolisKernel

LOG_Z_RATIO, P_LEFT = 8.455603, 0.1556929
STEP_SIZE = {
    "metropolis": 0.3,
    "langevin": 0.004,
    "mala": 0.02,
    "hmc": 0.06,
    "unadjusted_hmc": 0.04,
    "bbk": 0.04,
    "baoab": 0.04,
    "obabo": 0.04,
}
# the same test by an independent implementation: log Z, effective samples per path, P(left)
PUBLISHED = {
    "metropolis": [8.4532, 0.441, 0.1563],
    "langevin": [8.4538, 0.195, 0.1553],
    "mala": [8.4576, 0.361, 0.1552],
    "hmc": [8.4558, 0.484, 0.1562],
    "unadjusted_hmc": [8.4524, 0.362, 0.1565],
    "bbk": [8.4584, 0.221, 0.1554],
    "drifted, exp(-delta u)": [8.7831, 0.426, 0.1485],
}


class Drifted(MetropolisKernel):
    """A Langevin proposal accepted with exp(-delta u) alone."""

    needs_force = True

    def propose(self, state, run):
        before, force, _ = run.energy_and_force(state)
        x, eps = state["x"], 0.02
        after, _, proposal = run.energy_and_force(
            state.replace(x=x + eps * force["x"] + math.sqrt(2 * eps) * run.normal(x))
        )
        return proposal, before - after


def annealed(make_block) -> Generator:
    """A Generator of the block at 40 levels; velocities are kept from one level to the next."""
    steps = [step for k in range(1, 41) for step in make_block(k / 40)]
    moves = [step for step in steps if not isinstance(step, (DrawVelocities, DropVelocities))]
    if len(moves) < len(steps):
        moves = [DrawVelocities(), *moves, DropVelocities()]
    return Generator(Gaussian(2).double(), moves)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=400_000)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    target = DoubleWell().double()
    base_log_z = math.log(2 * math.pi)  # of exp(-|x|^2/2)
    rows: dict = {}
    blocks = {
        name: lambda level, name=name: stochastic_block(name, step_size=STEP_SIZE[name], n_steps=5, level=level)
        for name in BLOCKS
    }
    blocks["drifted, exp(-delta u)"] = lambda level: [Drifted(n_steps=5, level=level)]
    for name, make_block in blocks.items():
        began = time.process_time()
        ensemble = annealed(make_block).sample(arguments.n, target, seed=1, batch_size=20_000)
        seconds = time.process_time() - began
        log_z = ensemble.log_z()
        left = ensemble.expectation(lambda state: (state["x"][:, 0] < 0).double())
        exact = LOG_Z_RATIO + base_log_z
        rows[name] = {
            "step size": STEP_SIZE.get(name, 0.02),
            "log Z1/Z0": [log_z.value - base_log_z, log_z.error],
            "log Z1/Z0, standard errors off": log_z.z_score(exact),
            "P(left)": [left.value, left.error],
            "P(left), standard errors off": left.z_score(P_LEFT),
            "ess fraction": ensemble.ess_fraction(),
            "reverse KL": exact - float(ensemble.log_weights.mean()),
            "forces per path": ensemble.provenance.n_force / len(ensemble),
            "processor seconds": seconds,
            "published log Z1/Z0, ess fraction, P(left)": PUBLISHED.get(name),
        }
        print(
            f"{name:24s} {log_z.value - base_log_z:.4f} ± {log_z.error:.4f} ({log_z.z_score(exact):+.1f})"
            f"  {left.value:.4f} ± {left.error:.4f} ({left.z_score(P_LEFT):+.1f})"
            f"  ESS {ensemble.ess_fraction():.3f}  {seconds:.0f} s",
            flush=True,
        )
    results = {"n": arguments.n, "exact log Z1/Z0": LOG_Z_RATIO, "exact P(left)": P_LEFT, "blocks": rows}
    print(record("snf_blocks", results, arguments.output))


if __name__ == "__main__":
    main()
