"""log q at fixed parameters, for gradients through the samples alone."""

import torch
from torch.func import functional_call

from boltzflow._typing import Bool, Float64, Tensor
from boltzflow.generators.generator import Generator
from boltzflow.run import Context
from boltzflow.state import State

__all__ = ["frozen_log_prob"]


def frozen_log_prob(
    generator: Generator, end: State, keep: Bool[Tensor, " batch"], context: Context | None
) -> Float64[Tensor, " batch"]:
    """Log-density at fixed parameters: differentiable through x alone, and through that only in the rows kept.

    Args:
        generator: Bijective.
        end: Its samples, with their autograd history.
        keep: Rows with a gradient.
        context: Passed on to the Transitions.
    """
    fields = {name: torch.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, x.detach()) for name, x in end.fields.items()}
    density = _Density(generator)
    frozen = {name: p.detach() for name, p in density.named_parameters()}
    return functional_call(density, frozen, (State(fields, end.spaces), context))


class _Density(torch.nn.Module):
    """`log_prob` as the forward of a module, which is what torch.func can call with other parameters."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, state: State, context: Context | None) -> Tensor:
        return self.generator.log_prob(state, context=context)
