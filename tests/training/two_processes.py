"""What torchrun starts twice in test_processes.py; the functions are also called there, in one process."""

import sys
from pathlib import Path

import torch

from boltzflow.generators import Generator
from boltzflow.io.config import TrainingConfig
from boltzflow.objectives import MaximumLikelihood, Mixture, Objective, ReverseKL
from boltzflow.run import make_rng
from boltzflow.targets import Gaussian, harmonic_pair
from boltzflow.training import Trainer, processes
from boltzflow.transitions.affine import Affine, AffineCoupling
from boltzflow.transitions.mala import MALA
from boltzflow.workflow import sample_to_file


def target():
    return Gaussian(2, mean=torch.tensor([0.5, -1.0]), scale=torch.tensor([1.5, 0.7])).double()


def flow():
    steps = [AffineCoupling(["line"] * 2, torch.tensor([k == 0, k == 1]), field="x", hidden=(8,)) for k in range(2)]
    generator, rng = Generator(Gaussian(2), steps).double(), make_rng(3)
    with torch.no_grad():
        for p in generator.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=rng, dtype=p.dtype))
    return generator


def trainer(*, world=None, metrics=None, loss=None, **changes):
    generator = flow()
    if loss is None:
        loss = Mixture([(1.0, MaximumLikelihood(generator)), (0.5, ReverseKL(generator, target()))])
    settings = {"steps": 12, "batch_size": 16, "reverse_batch_size": 8, "warmup_steps": 4, "log_every": 5, "seed": 3}
    config = TrainingConfig(**{**settings, "checkpoint_every": 4, **changes})
    return Trainer(loss, config, data=target().sample(60, make_rng(9)), world=world, metrics=metrics)


def trained(run):
    """Gradient of the first step, and what there is at the end."""
    run.train_step()
    gradient = torch.cat([p.grad.flatten() for p in run.parameters])
    run.run()
    parameters = torch.cat([p.detach().flatten() for p in run.parameters])
    return {
        "gradient": gradient,
        "parameters": parameters,
        "average": dict(run.ema.shadow),
        "ledger": run.ledger.as_dict(),
    }


def sample(path, *, n=45, **options):
    first, second = (end.double() for end in harmonic_pair(2))
    generator = Generator(first, [MALA(0.1, level=0.5)]).double()
    return sample_to_file(generator, second, path, n=n, seed=3, batch_size=10, extra={"system": "pair"}, **options)


def natural(world=None):
    """By natural gradient: a normal distribution with a mean and widths in training."""
    generator = Generator(Gaussian(2), [Affine(torch.zeros(2), torch.ones(2), field="x", learnable=True)]).double()
    settings = {"shards": 2, "reverse_batch_size": 64, "learning_rate": 0.5, "clip_gradient": None}
    settings["natural_gradient"] = {"rows": 32, "batch_size": 8, "every": 2, "momentum": 0.5, "max_change": 1.0}
    return trainer(world=world, loss=ReverseKL(generator, target()), **settings)


class Lost(Objective):
    """Fails on the second process while the first one waits for it."""

    def forward(self, step):
        if processes().rank == 1:
            raise RuntimeError("lost the device")
        return sum(p.square().sum() for p in self.generator.parameters()), {}


def main(folder: Path) -> None:
    world = processes()
    for shards in (2, 4):
        run = trainer(world=world, shards=shards, metrics=folder / f"metrics-{world.rank}-{shards}.jsonl")
        torch.save(trained(run), folder / f"trained-{world.rank}-{shards}.pt")
    torch.save(trained(natural(world)), folder / f"natural-{world.rank}.pt")
    torch.save(trainer(world=world, seed=None).seed, folder / f"seed-{world.rank}.pt")
    sample(folder / "ensemble.h5")
    sample(folder / "topped.h5", n=20)
    sample(folder / "topped.h5", resume=True)
    trainer(world=world, loss=Lost(flow())).run()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
