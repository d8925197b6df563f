"""Linear layers through oneDNN on a CPU in float32, where the default BLAS leaves half of the machine unused."""

from collections.abc import Sequence

import torch

from boltzflow._typing import Float, Tensor

__all__ = ["Linear", "silu_rows", "silu_rows_input_gradient"]

# What torch's own compiler emits for linear layers; absent from builds without oneDNN.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` for inputs (batch, n_in), by `silu_rows`.

    The result is a transposed view of contiguous (n_out, batch) rows, as the couplings keep their coordinates; the
    gradient of the weight is then a product of two contiguous factors. Like every custom autograd function it does not
    go through torch.func transforms.
    """

    def forward(self, input: Float[Tensor, "batch n_in"]) -> Float[Tensor, "batch n_out"]:
        """Apply the layer."""
        return silu_rows(input, [self]).t()


def silu_rows(x: Float[Tensor, "batch n_in"], layers: Sequence[torch.nn.Linear]) -> Float[Tensor, "n_out batch"]:
    """Rows of a network: linear layers with SiLU between them, as one step of autograd.

    torch hands float32 products on a CPU to MKL, which takes its AVX2 path on processors by another maker; oneDNN uses
    what the processor has. On a Zen 5 core a product (750 × 128) (128 × 1024) runs at 225 instead of 95 GFlop/s. One
    step for all layers, because at batch 256 the bookkeeping of many costs as much as the arithmetic.

    Args:
        x: Inputs, contiguous or transposed.
        layers: The linear layers, in order.
    """
    return _SiluRows.apply(x, *[parameter for layer in layers for parameter in (layer.weight, layer.bias)])


def silu_rows_input_gradient(
    rows: Float[Tensor, "n_out batch"], grad: Float[Tensor, "n_out batch"]
) -> Float[Tensor, "batch n_in"] | None:
    """Gradient with respect to the inputs alone, from what autograd has saved of the network's rows.

    `torch.autograd.grad` would compute those of the weights as well and throw them away.

    Args:
        rows: What `silu_rows` returned.
        grad: Gradient with respect to them.

    Returns:
        The gradient; None if the rows carry no history, or another one.
    """
    node = rows.grad_fn
    if getattr(node, "n_parameters", None) is None:
        return None
    _, *saved = node.saved_tensors
    parameters, before = saved[: node.n_parameters], saved[node.n_parameters :]
    with torch.no_grad():
        for k in reversed(range(node.n_parameters // 2)):
            grad = _product(parameters[2 * k].t(), grad.t())
            if k:
                grad = torch.ops.aten.silu_backward(grad, before[k - 1])
    return grad.t()


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Product a bᵀ."""
    on_cpu = _ONEDNN and a.device.type == "cpu" and a.dtype == b.dtype == torch.float32
    if not on_cpu or torch.is_grad_enabled() or not a.numel() or not b.numel():
        return a @ b.t()
    return torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")


def _rows(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The network's rows, and those of every layer before its SiLU."""
    hidden, before = x.t(), []
    for weight, bias in zip(parameters[::2], parameters[1::2], strict=True):
        if before:
            hidden = torch.nn.functional.silu(before[-1])
        before.append(_product(weight, hidden.t()).add_(bias[:, None]))
    return before[-1], before[:-1]


class _SiluRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, *parameters):
        rows, before = _rows(x, parameters)
        ctx.save_for_backward(x, *parameters, *before)
        ctx.n_parameters = len(parameters)
        return rows

    @staticmethod
    def backward(ctx, grad):
        x, *saved = ctx.saved_tensors
        parameters, before = saved[: ctx.n_parameters], saved[ctx.n_parameters :]
        if torch.is_grad_enabled():  # create_graph: differentiate the operations, which carry second derivatives
            wanted = [t for t, needed in zip((x, *parameters), ctx.needs_input_grad, strict=True) if needed]
            grads = iter(torch.autograd.grad(_rows(x, parameters)[0], wanted, grad, create_graph=True))
            return tuple(next(grads) if needed else None for needed in ctx.needs_input_grad)
        results: list[Tensor | None] = []
        for k in reversed(range(ctx.n_parameters // 2)):
            needs_weight, needs_bias = ctx.needs_input_grad[2 * k + 1 : 2 * k + 3]
            hidden = torch.nn.functional.silu(before[k - 1]) if k else x.t()
            results = [_product(grad, hidden) if needs_weight else None, grad.sum(1) if needs_bias else None, *results]
            if k or ctx.needs_input_grad[0]:
                grad = _product(parameters[2 * k].t(), grad.t())
            if k:
                grad = torch.ops.aten.silu_backward(grad, before[k - 1])
        return grad.t() if ctx.needs_input_grad[0] else None, *results
