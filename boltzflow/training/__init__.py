"""Training: the loop over a loss module, schedules, averaging."""

from boltzflow.training.ema import ExponentialMovingAverage
from boltzflow.training.schedule import warmup_cosine
from boltzflow.training.trainer import Trainer, TrainingState

__all__ = ["ExponentialMovingAverage", "Trainer", "TrainingState", "warmup_cosine"]
