"""Training: the loop over a loss module, schedules, averaging, the processes of a run."""

from boltzflow.training.ema import ExponentialMovingAverage
from boltzflow.training.natural_gradient import NaturalGradient, parameter_scores
from boltzflow.training.processes import Processes, local_device, processes, started_processes
from boltzflow.training.schedule import warmup_cosine
from boltzflow.training.torsion_blocks import TorsionFit, fit_torsion_density
from boltzflow.training.trainer import Trainer, TrainingState

__all__ = [
    "ExponentialMovingAverage",
    "NaturalGradient",
    "Processes",
    "TorsionFit",
    "Trainer",
    "TrainingState",
    "fit_torsion_density",
    "local_device",
    "parameter_scores",
    "processes",
    "started_processes",
    "warmup_cosine",
]
