"""The bar of a training on a terminal, and what the log keeps meanwhile."""

from __future__ import annotations

import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import NARROW, run_on_terminal

from mmflowers.engine import progress


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_shows_a_bar_and_a_line_an_epoch_and_the_log_every_line(
    dataset: Path, tiny_config: Path, tmp_path: Path
) -> None:
    options = ("--weights", "none", "--work-dir", "run", "--cfg-options", *NARROW)
    code, drawn = run_on_terminal("train.py", tiny_config, "--data", dataset, *options, cwd=tmp_path)
    assert code == 0, drawn
    assert re.search(r"\repoch 1/2 1/5 \|.+\| loss \d\.\d+  lr 0\.\d+  [\d,]+ images/s  eta 0:\d\d:\d\d\r", drawn)
    assert re.search(r"\repoch 2/2 1/5 \|.+\|.* best \d+\.\d\d\r", drawn)
    assert "\repoch 1/2 val 1/2 |" in drawn
    # What stays: a carriage return goes back to the start of the line, where the rest is written over.
    kept = [line.rstrip("\r").rpartition("\r")[2] for line in drawn.split("\n")]
    assert sum(bool(re.match(r"epoch \d/2  loss .* val top1 \d+\.\d\d", line)) for line in kept) == 2
    assert kept[-2].startswith("results: run") and not any("|" in line for line in kept)
    assert "Epoch(train)" not in drawn and "System environment" not in drawn
    (log,) = tmp_path.glob("run/*/*.log")
    text = log.read_text()
    assert text.count("Epoch(train)") == text.count("Epoch(val)") == 2 and "System environment" in text
    assert "\r" not in text and "images/s" not in text


def test_the_loss_is_read_only_when_the_bar_is_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    reads, now = [], [0.0]

    class Loss(torch.Tensor):
        def item(self):
            reads.append(now[0])
            return 1.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = SimpleNamespace(n=0, total=1000, bar_format="", refresh=lambda: None, close=lambda: None)
    monkeypatch.setattr(progress, "open_bar", lambda **_: bar)
    loader = type("Loader", (list,), {"dataset": range(8000)})(range(1000))
    runner = SimpleNamespace(
        iter=0,
        epoch=0,
        max_epochs=1,
        max_iters=1000,
        train_loop=object.__new__(progress.EpochBasedTrainLoop),
        train_dataloader=loader,
        optim_wrapper=SimpleNamespace(get_lr=lambda: {"lr": [0.1]}),
        message_hub=SimpleNamespace(get_info=lambda *_, **__: None),
        logger=SimpleNamespace(log_file="log"),
    )
    hook = progress.ProgressHook()
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    loss = torch.tensor(1.0).as_subclass(Loss)
    for runner.iter in range(100):  # a tenth of a second each
        now[0] += 0.1
        hook.after_train_iter(runner, runner.iter, outputs={"loss": loss})
    assert 15 <= len(reads) <= 21  # ten seconds, twice a second
    assert bar.n > 90 and "80 images/s" in bar.bar_format


def test_only_a_terminal_of_its_own_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(isatty=lambda: True)
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert progress.wants_bar("none") and not progress.wants_bar("pytorch")
    monkeypatch.setenv("TERM", "dumb")
    assert not progress.wants_bar("none")
    monkeypatch.setenv("TERM", "xterm")
    stream.isatty = lambda: False
    assert not progress.wants_bar("none")
