"""A network's forward and backward pass as two CUDA graphs, instead of kernel by kernel.

On a large GPU with batches of 32, most kernels of a ResNet-50 take less time than Python needs to launch them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

CLOSE = 0.02  # of a norm: kernels that add in another order differ by less, in bfloat16 too


class _Standin(nn.Module):
    """The module to capture: the original forward pass with the module's parameters and buffers."""

    def __init__(self, module: nn.Module, forward: Callable) -> None:
        super().__init__()
        self.module, self._forward = module, forward

    def forward(self, inputs: Tensor) -> Any:
        return self._forward(inputs)


class GraphedForward:
    """Replaces a module's forward pass in a training on a GPU by graphs (``torch.cuda.make_graphed_callables``).

    A shape that occurs twice in a row is captured. Other shapes (an epoch's smaller last batch), eval mode and passes
    without gradients use the original forward pass. A graph is used only if outputs, gradients and buffers are those of
    the module. If they differ, or if the capture fails, the training continues without graphs.

    The gradients are in the graph's memory, which the next backward pass overwrites, so they can't be accumulated. A
    copy of the module has the original forward pass.

    Args:
        module: Takes one tensor. Its parameters, buffers and their ``requires_grad`` must not change.
        before_capture: Called before the capture, during which nothing else, in any thread, may use the GPU.
        warn: Called with a line if there is no graph.
        make: ``torch.cuda.make_graphed_callables``, or a replacement for tests.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        before_capture: Callable[[], object],
        warn: Callable[[str], object],
        make: Callable = torch.cuda.make_graphed_callables,
    ) -> None:
        self._module, self._forward = module, module.forward
        self._before_capture, self._warn, self._make = before_capture, warn, make
        self._last: tuple | None = None
        self._captured: tuple | None = None
        self._graphed: Callable | None = None
        self._given_up = False

    def __call__(self, inputs: Tensor) -> Any:
        if self._given_up or not self._module.training or not torch.is_grad_enabled() or inputs.requires_grad:
            return self._forward(inputs)
        if self._last is None:  # the first batch
            outputs = self._forward(inputs)
            self._given_up = not any(output.requires_grad for output in tree_leaves(outputs))  # a frozen backbone
            self._last = (inputs.shape, inputs.dtype)
            return outputs
        form = (inputs.shape, inputs.dtype)
        again, self._last = form == self._last, form
        if again and form != self._captured:
            self._capture(inputs)
            self._captured = form
        graphed = self._graphed if form == self._captured else None
        return (graphed or self._forward)(inputs)

    def __deepcopy__(self, memo: dict) -> Callable:
        """Return the original forward pass of the module's copy: a graph uses the weights it was captured with."""
        return copy.deepcopy(self._forward, memo)

    def _capture(self, inputs: Tensor) -> None:
        self._graphed = None  # frees the memory of another shape's graph
        self._before_capture()
        state = [buffer.clone() for buffer in self._module.buffers()]
        try:
            with _same_numbers(inputs), _without_casts_kept(inputs):
                made = self._make(_Standin(self._module, self._forward), (inputs.clone(),), allow_unused_input=True)
            other = inputs.flip(0)  # not the batch it was captured with
            expected, got = (self._outcome(run, other, state) for run in (self._forward, made))
            apart = [name for name in expected if not _close(expected[name], got[name])]
            why = f"its {' and '.join(apart)} differ from the network's" if apart else None
        except Exception as error:  # of any kind: the network itself can still train
            made, why = None, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self._set_buffers(state)
        if why is None:
            self._graphed = made
        else:
            self._given_up = True
            self._warn(f"trained without a CUDA graph: {why}")

    def _outcome(self, run: Callable, inputs: Tensor, state: list[Tensor]) -> dict[str, list[Tensor]]:
        """Return outputs, gradients and buffers of a step that starts from the buffers' ``state``."""
        self._set_buffers(state)
        with _same_numbers(inputs):
            outputs = [output for output in tree_leaves(run(inputs)) if output.requires_grad]
            parameters = [parameter for parameter in self._module.parameters() if parameter.requires_grad]
            directions = [output.detach() for output in outputs]  # gradients of half the sum of squares
            gradients = torch.autograd.grad(outputs, parameters, directions, allow_unused=True)
        return {
            "outputs": [output.detach().float() for output in outputs],
            "gradients": [gradient.float().clone() for gradient in gradients if gradient is not None],
            "buffers": [buffer.float().clone() for buffer in self._module.buffers()],
        }

    def _set_buffers(self, state: list[Tensor]) -> None:
        with torch.no_grad():
            for buffer, value in zip(self._module.buffers(), state, strict=True):
                buffer.copy_(value)


def _same_numbers(inputs: Tensor) -> Any:
    """Return a context after which the random generators are as before."""
    return torch.random.fork_rng([inputs.device] if inputs.is_cuda else [])


def _without_casts_kept(inputs: Tensor) -> Any:
    """Return the current autocast context without its cache of cast weights, which a replay would never update."""
    kind = inputs.device.type
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)


def _close(one: list[Tensor], other: list[Tensor]) -> bool:
    if len(one) != len(other):
        return False
    if not one:
        return True
    apart, size = (torch.stack(torch._foreach_norm(side)).norm() for side in (torch._foreach_sub(one, other), one))
    return bool(apart <= CLOSE * size)
