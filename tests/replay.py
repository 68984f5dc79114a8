"""What stands for CUDA's graphs where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Replay:
    """As ``torch.cuda.make_graphed_callables``: warms up, keeps the memory that it was made with, takes no other shape.

    Args:
        spoil: What shall come out wrong: "outputs", "gradients" or "buffers".

    Attributes:
        made: Graphs that were.
        replayed: How often any of them.
    """

    def __init__(self, spoil: str | None = None) -> None:
        self.spoil, self.made, self.replayed = spoil, 0, 0

    def __call__(self, standin: nn.Module, sample: tuple[Tensor], allow_unused_input: bool) -> Callable:
        self.made += 1
        (kept,) = sample
        parameters = tuple(parameter for parameter in standin.parameters() if parameter.requires_grad)
        for _ in range(3):
            (output,) = standin(kept)
            torch.autograd.grad(output, parameters, torch.ones_like(output), allow_unused=allow_unused_input)
        own = self

        class Replayed(torch.autograd.Function):
            @staticmethod
            def forward(ctx, inputs: Tensor, *_: Tensor) -> Tensor:
                assert inputs.shape == kept.shape
                kept.copy_(inputs)
                with torch.enable_grad():
                    (ctx.output,) = standin(kept)
                if own.spoil == "buffers":
                    for buffer in standin.buffers():
                        buffer.data.add_(1)  # unseen by autograd, which still needs them
                return ctx.output.detach() * (1.1 if own.spoil == "outputs" else 1)

            @staticmethod
            def backward(ctx, grad: Tensor) -> tuple:
                found = torch.autograd.grad(ctx.output, parameters, grad, allow_unused=allow_unused_input)
                return None, *(g if g is None or own.spoil != "gradients" else g * 1.1 for g in found)

        def replay(inputs: Tensor) -> tuple[Tensor]:
            own.replayed += 1
            return (Replayed.apply(inputs, *parameters),)

        return replay
