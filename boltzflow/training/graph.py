"""A training step as a CUDA graph: one launch in place of thousands, with the numbers of its eager twin."""

from collections.abc import Callable, Sequence

import torch

from boltzflow._typing import Tensor
from boltzflow.run import Ledger

__all__ = ["GraphStep", "StepGraph"]

GraphStep = Callable[[torch.Generator], tuple[Tensor, dict[str, Tensor], Ledger]]

_N_WARM_UP = 3


class StepGraph:
    """Forward and backward pass of a step, captured once and replayed.

    The step is a function of parameters and random stream alone: it must make the same sequence of kernels at every
    call and never look at a value on the device. Noise is that of the eager step, because the stream is seeded before
    every replay.

    Args:
        step: Returns detached loss, numbers to log, and what it evaluated; leaves gradients in the parameters.
        parameters: Whose gradients it leaves.
        device: A CUDA device.

    Raises:
        ValueError: If the device is no CUDA device, or the step cannot be captured.
    """

    def __init__(self, step: GraphStep, parameters: Sequence[torch.nn.Parameter], device: torch.device) -> None:
        self._parameters = list(parameters)
        self._rng = torch.Generator(device=device)
        try:
            self._graph, self._outputs = _capture(step, self._rng, self._parameters)
        except RuntimeError as error:
            raise ValueError(
                f"training.cuda_graph: this step cannot be captured ({str(error).splitlines()[0]}); set it to false."
            ) from error
        self._gradients = [p.grad for p in self._parameters]

    def replay(self, seed: int) -> tuple[Tensor, dict[str, Tensor], Ledger]:
        """Do the step with the noise of `torch.Generator.manual_seed(seed)`.

        Returns:
            As the step does. Gradients are in the parameters until the next replay.
        """
        self._rng.manual_seed(seed)
        self._graph.replay()
        for p, gradient in zip(self._parameters, self._gradients, strict=True):
            p.grad = gradient
        loss, logged, ledger = self._outputs
        # the graph writes to the same memory again, and what is on the device in the ledger is added up
        counts = Ledger(ledger.energies.copy(), ledger.forces.copy(), ledger.nonfinite.copy())
        for name, count in counts.nonfinite.items():
            counts.nonfinite[name] = _copy(count)
        return loss.clone(), {name: _copy(value) for name, value in logged.items()}, counts


def _copy(value: Tensor | int) -> Tensor | int:
    return value.clone() if isinstance(value, Tensor) else value


def _capture(
    step: GraphStep, rng: torch.Generator, parameters: list[torch.nn.Parameter]
) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, dict[str, Tensor], Ledger]]:
    """The graph and the tensors that it writes."""
    if rng.device.type != "cuda":
        raise ValueError(f"training.cuda_graph: needs a CUDA device, training.device is {rng.device}; set it to false.")
    side = torch.cuda.Stream(rng.device)
    side.wait_stream(torch.cuda.current_stream(rng.device))
    with torch.cuda.stream(side):
        for _ in range(_N_WARM_UP):  # what is compiled or tuned at first calls must not be captured
            _forget(parameters)
            step(rng)
    torch.cuda.current_stream(rng.device).wait_stream(side)
    # without gradients a backward pass makes them in the memory of the graph, and writes instead of adding
    _forget(parameters)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(rng)
    with torch.cuda.graph(graph):
        outputs = step(rng)
    return graph, outputs


def _forget(parameters: list[torch.nn.Parameter]) -> None:
    for p in parameters:
        p.grad = None
