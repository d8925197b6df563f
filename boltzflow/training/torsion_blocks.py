"""Fit the conditional density of torsion blocks to configurations of the molecule, by maximum likelihood."""

import copy
import math
from dataclasses import dataclass

import torch

from boltzflow._typing import Float, Tensor
from boltzflow.training.schedule import warmup_cosine
from boltzflow.transitions.torsion_block_flow import BlockTables
from boltzflow.transitions.torsion_blocks import TorsionBlocks
from boltzflow.transitions.torsion_density import TorsionDensity

__all__ = ["TorsionFit", "fit_torsion_density"]


@dataclass(frozen=True, eq=False)
class TorsionFit:
    """A trained density and how it got there.

    Attributes:
        density: Frozen, float64.
        loss: Negative log-likelihood per block of every step, (steps,).
        held_out: The same of frames that were not trained on, in nats per block; a uniform density has
            n log 2π for a block of n coordinates.
        uniform: What a uniform density has on the same blocks.
    """

    density: TorsionDensity
    loss: Float[Tensor, " steps"]
    held_out: float
    uniform: float


def fit_torsion_density(
    blocks: TorsionBlocks,
    positions: Float[Tensor, "n_frames n_atoms 3"],
    *,
    rng: torch.Generator,
    steps: int = 1000,
    batch_size: int = 512,
    learning_rate: float = 3e-3,
    held_out: float = 0.1,
    **options: object,
) -> TorsionFit:
    """Maximise the mean of log q(x | c) over random blocks of random frames, with AdamW.

    The frames need not be of one temperature, nor of equilibrium: the density only proposes. Frames of a ladder of
    temperatures, such as parallel tempering keeps with `keep="all"`, show the states that the coldest chains have not
    found yet.

    Args:
        blocks: Of the molecule.
        positions: Frames, in any order; the last ones are held out.
        rng: Random stream: of the initial network, and of the batches.
        steps: Steps of the optimiser.
        batch_size: Blocks per step.
        learning_rate: After a tenth of warm-up; it falls to zero along a cosine.
        held_out: Fraction of the frames that is not trained on.
        **options: Of `TorsionDensity`.

    Returns:
        The density, ready for `TorsionBlockFlow`.

    Raises:
        ValueError: If there are fewer than two frames, or a torsion of them is not finite.

    References:
        Meta-Learning MCMC Proposals (Wang et al., 2018), section 4.2: the same loss on draws of a model,
        https://arxiv.org/abs/1708.06040

    Example:
        >>> from boltzflow.run import make_rng
        >>> from boltzflow.transitions import rotatable_axes, torsion_blocks
        >>> bonds = [(0, 1), (1, 2), (2, 3), (3, 4)]
        >>> blocks = torsion_blocks(rotatable_axes(bonds, n_atoms=5), bonds, [6] * 5, families=("hinge",))
        >>> frames = torch.randn(200, 5, 3, generator=make_rng(1))
        >>> fit = fit_torsion_density(blocks, frames, rng=make_rng(2), steps=5, bins=4, fused=False)
        >>> round(fit.uniform, 3)
        1.838
    """
    n_train = len(positions) - max(1, round(held_out * len(positions)))
    if n_train < 1:
        raise ValueError(f"fit_torsion_density positions: expected at least two frames, got {len(positions)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=rng)))
        density = TorsionDensity.of(blocks, **options).to(positions.device)
    angles = blocks.torsions(positions).float()
    if not bool(torch.isfinite(angles).all()):
        raise ValueError("fit_torsion_density positions: a torsion is not finite; drop those frames.")
    tables = BlockTables(blocks).to(positions.device)
    optimiser = torch.optim.AdamW(density.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: warmup_cosine(step, n_steps=steps, warmup_steps=max(1, steps // 10), final_fraction=0.0),
    )

    def batch(frames: Tensor, block: Tensor) -> Tensor:
        return -density.log_prob(tables.kind[block], tables.select(frames, block))

    losses = []
    for _ in range(steps):
        rows = torch.randint(n_train, (batch_size,), generator=rng)
        block = torch.randint(len(blocks), (batch_size,), generator=rng)
        loss = batch(angles[rows], block).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(density.parameters(), 10.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
    with torch.no_grad():
        rows = n_train + torch.arange(len(positions) - n_train).repeat_interleave(len(blocks))
        block = torch.arange(len(blocks)).repeat(len(positions) - n_train)
        score = float(batch(angles[rows], block).mean())
    uniform = float((tables.leading >= 0).sum(1).double().mean()) * math.log(2 * math.pi)
    frozen = copy.deepcopy(density).double().requires_grad_(False)  # noqa: FBT003
    return TorsionFit(frozen, torch.stack(losses).cpu(), score, uniform)
