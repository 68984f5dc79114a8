"""What is learned by replaying a graph is what is learned without; a graph that would learn otherwise isn't used.

Where there is no GPU, ``Replay`` stands for CUDA's graphs.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from replay import Replay
from torch import Tensor, nn

from mmflowers.speed.graphs import GraphedForward

GPU = pytest.param(
    "cuda",
    marks=pytest.mark.skipif(
        not torch.cuda.is_available(), reason="CUDA's own graphs need a GPU; Replay stands for them in the tests above"
    ),
)


class Network(nn.Module):
    """A small backbone with all that a capture could disturb: running statistics, dropout, a parameter without use."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Conv2d(8, 4, 3)
        )
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, inputs: Tensor) -> tuple[Tensor]:
        return (self.layers(inputs),)


SIZES = (8, 8, 8, 3, 8, 8)


def learn(
    device: str = "cpu", make: Callable | None = None, sizes: tuple[int, ...] = SIZES
) -> tuple[dict[str, Tensor], list[str]]:
    """Train in batches of ``sizes``. Returns the state dict and the warnings."""
    torch.manual_seed(0)
    network = Network().to(device).train()
    warnings: list[str] = []
    if make is not None:
        network.forward = GraphedForward(network, before_capture=lambda: None, warn=warnings.append, make=make)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for number, size in enumerate(sizes):
        torch.manual_seed(number)
        inputs = torch.randn(size, 3, 12, 12, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            (output,) = network(inputs)
            loss = output.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict(), warnings


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], msg=lambda text, name=name: f"{name}: {text}")


def test_it_learns_the_same_and_captures_the_shape_that_comes_twice() -> None:
    replay = Replay()
    weights, warnings = learn(make=replay)
    assert_same(weights, learn()[0])
    assert not warnings
    # One made at the second batch; replayed to be compared, then for each batch of 8 from there on.
    assert (replay.made, replay.replayed) == (1, 1 + 4)


def test_another_shape_that_stays_is_captured_anew() -> None:
    replay, sizes = Replay(), (8, 8, 8, 4, 4, 4)
    weights, _ = learn(make=replay, sizes=sizes)
    assert_same(weights, learn(sizes=sizes)[0])
    assert (replay.made, replay.replayed) == (2, 1 + 2 + 1 + 2)


@pytest.mark.parametrize("spoilt", ["outputs", "gradients", "buffers"])
def test_a_graph_that_gives_something_else_is_left_aside(spoilt: str) -> None:
    replay = Replay(spoilt)
    weights, (warning,) = learn(make=replay)
    assert_same(weights, learn()[0])
    assert replay.made == 1 and "trained without a CUDA graph" in warning and spoilt in warning


def test_what_cant_be_captured_is_trained_without() -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\n\nand more lines")

    weights, (warning,) = learn(make=refuse)
    assert_same(weights, learn()[0])
    assert warning.startswith("trained without a CUDA graph: RuntimeError: operation not permitted") and (
        "\n" not in warning
    )


def test_nothing_is_captured_in_an_evaluation() -> None:
    replay = Replay()
    network = Network()
    graphed = GraphedForward(network, before_capture=lambda: None, warn=print, make=replay)
    with torch.no_grad():
        graphed(torch.randn(4, 3, 12, 12)), graphed(torch.randn(4, 3, 12, 12))
    network.eval()
    graphed(torch.randn(4, 3, 12, 12)), graphed(torch.randn(4, 3, 12, 12))
    assert replay.made == 0


def test_nothing_is_captured_or_warned_of_where_nothing_is_learned() -> None:
    network, replay, warnings = nn.Identity().train(), Replay(), []
    network.forward = GraphedForward(network, before_capture=lambda: None, warn=warnings.append, make=replay)
    for _ in range(3):
        network(torch.randn(4, 3, 12, 12))
    assert replay.made == 0 and not warnings


def test_a_copy_of_the_network_computes_with_its_own_weights() -> None:
    network, lock = Network(), threading.Lock()  # which can't be copied, as a Runner can't
    network.forward = GraphedForward(network, before_capture=lock.locked, warn=print, make=Replay())
    inputs = torch.randn(4, 3, 12, 12)
    network(inputs), network(inputs)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        copied.layers[-1].weight.zero_(), copied.layers[-1].bias.fill_(3.0)
    assert (copied(inputs)[0] == 3).all() and (network(inputs)[0] != 3).any()


@pytest.mark.parametrize("device", [GPU])
def test_torchs_own_graphs_learn_the_same(device: str) -> None:
    weights, warnings = learn(device, torch.cuda.make_graphed_callables)
    assert not warnings
    expected, _ = learn(device)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=0.02, atol=0.02)
