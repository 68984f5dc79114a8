"""A GPU that isn't there: tensors that say ``cuda:0`` and keep their values in the host's memory.

What runs a training on them is the project's own code and MMEngine's, to the end and with values. As on a GPU, an
operation on tensors of both devices is an error, and so is ``numpy()`` of a tensor on the GPU. Whatever would make the
host wait for a GPU is counted. Kernels, memory, streams and CUDA graphs are a real GPU's and aren't simulated.

PyTorch's FakeTensorMode has no values, so no validation, checkpoint or prediction would come out of it; and with a CUDA
build of PyTorch it has no backward pass on a machine without a GPU. For the C++ side the tensors are on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

GPU = torch.device("cuda", 0)
# May read a host's tensor and a GPU's: copies, and indices of a GPU's tensor, which may lie on the host.
MIXES = ("aten::copy_", "aten::_foreach_copy_")
INDEXES = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
# How many numbers come out, or what they are, is asked for on the host.
WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::_unique2", "aten::masked_select")

waited: list[str] = []  # for what the host waited, in order


class GPUTensor(torch.Tensor):
    """A tensor whose ``device`` is ``cuda:0``; ``host`` has its values."""

    host: torch.Tensor
    device = property(lambda self: GPU)
    is_cuda, is_cpu = property(lambda self: True), property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> GPUTensor:
        how = dict(strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype)
        return torch.Tensor._make_wrapper_subclass(cls, host.size(), **how)

    def __init__(self, host: torch.Tensor) -> None:
        self.host = host

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _compute(func, args, kwargs or {})

    def to(self, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
        """As ``torch.Tensor.to``, which would find the tensor on the CPU already."""
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype, *args[1:])
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
        how = {} if memory_format is None else {"memory_format": memory_format}
        moved = self if dtype is None and not how else torch.Tensor.to(self, dtype=dtype or self.dtype, **how)
        if device is None or device.type == "cuda":
            return moved.clone() if copy and moved is self else moved
        if not non_blocking:
            waited.append("a copy to the host")
        return _ToHost.apply(moved)

    def cpu(self, *args: Any) -> torch.Tensor:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self

    def tolist(self) -> Any:
        waited.append("tolist")
        return self.host.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def pin_memory(self, *args: Any) -> Any:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a tensor that is still on the GPU is written or sent to another process")


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: GPUTensor) -> torch.Tensor:
        return inputs.host.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return GPUTensor(grad)


class _ToGPU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> GPUTensor:
        return GPUTensor(inputs.clone())

    @staticmethod
    def backward(ctx: Any, grad: GPUTensor) -> torch.Tensor:
        return grad.host


class _Mode(TorchFunctionMode):
    """For what has no tensor of the GPU yet: ``torch.zeros(…, device='cuda')``, ``tensor.to('cuda')``."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.cuda:
            func, args, kwargs = torch.Tensor.to, (args[0], GPU), {}
        if func is torch.Tensor.to:
            tensor, *how = args
            copy = kwargs.pop("copy", False)
            if how and isinstance(how[0], torch.Tensor):
                how = [how[0].device, how[0].dtype, *how[1:]]
            device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*how, **kwargs)
            if device is not None and device.type == "cuda":
                if not non_blocking:
                    waited.append("a copy to the GPU")
                layout = {} if memory_format is None else {"memory_format": memory_format}
                return _ToGPU.apply(tensor.to(dtype=dtype or tensor.dtype, copy=copy, **layout))
        elif func is torch.nn.functional.one_hot and isinstance(args[0], GPUTensor):
            # Its C++ side makes a tensor where it takes the labels to be.
            return GPUTensor(func(args[0].host, *args[1:], **kwargs))
        elif torch.device(kwargs.get("device") or "cpu").type == "cuda":
            made = func(*args, **{**kwargs, "device": "cpu"})
            return made if isinstance(made, GPUTensor) else GPUTensor(made)
        return func(*args, **kwargs)


def _compute(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func._schema.name
    tensors = [*_tensors((*args, *kwargs.values()))]
    on_gpu = [value for value in tensors if isinstance(value, GPUTensor)]
    _refuse_two_devices(name, args, tensors, on_gpu)
    blocks = not (kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))
    if name in WAITS or (name in MIXES and len(on_gpu) < len(tensors) and blocks):
        waited.append(name)
    result = func(*_replaced(args, _on_host), **{key: _replaced(value, _on_host) for key, value in kwargs.items()})
    written = func._schema.arguments and func._schema.arguments[0].alias_info
    if written and written.is_write and len(func._schema.returns) == 1:  # in place: what comes out is what came in
        return args[0]
    return _replaced(result, GPUTensor)


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _replaced(value: Any, by: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        return by(value)
    return type(value)(_replaced(one, by) for one in value) if isinstance(value, (list, tuple)) else value


def _on_host(value: torch.Tensor) -> torch.Tensor:
    return value.host if isinstance(value, GPUTensor) else value


def _refuse_two_devices(name: str, args: tuple, tensors: list, on_gpu: list) -> None:
    if len(on_gpu) == len(tensors) or name in MIXES:
        return
    if name in INDEXES and isinstance(args[0], GPUTensor):
        return
    # A single number may be on the host where everything else is on the GPU, but not the other way round.
    if any(value.ndim for value in tensors if not isinstance(value, GPUTensor)):
        shapes = ", ".join(f"{tuple(value.shape)} on {value.device.type}" for value in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {shapes}")


class _Autocast(torch.autocast):
    """The GPU's tensors take part in the CPU's autocast: for the C++ side they are there."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        gpu = device_type == "cuda"
        super().__init__("cpu" if gpu else device_type, (dtype or torch.float16) if gpu else dtype, **kwargs)


@contextmanager
def simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let PyTorch and MMEngine find a GPU. What it makes the host wait for is in ``waited``."""
    waited.clear()
    for name, value in (
        ("is_available", lambda: True),
        ("is_bf16_supported", lambda *_, **__: True),
        ("device_count", lambda: 1),
        ("current_device", lambda: 0),
        ("set_device", lambda *_: None),
        ("synchronize", lambda *_: None),
        ("empty_cache", lambda: None),
        ("get_device_capability", lambda *_: (8, 0)),
        ("get_device_name", lambda *_: "simulated"),
        ("mem_get_info", lambda *_: (1 << 34, 1 << 34)),
        ("max_memory_allocated", lambda *_, **__: 0),
        ("max_memory_reserved", lambda *_, **__: 0),
        ("reset_peak_memory_stats", lambda *_: None),
        ("manual_seed_all", lambda *_: None),
        ("get_rng_state", lambda *_: torch.get_rng_state()),
        ("set_rng_state", lambda *_: None),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("mmengine.device.utils.DEVICE", "cuda")
    monkeypatch.setattr(torch, "autocast", _Autocast)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)  # ``data = …`` would leave the values behind
    try:
        with _Mode():
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)
