"""A signal to one of several processes: all stop after the same iteration, and exchange little for that."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """\
import os, signal, sys, time
import torch
from mmflowers.engine import signals

calls = 0
real = signals.all_reduce
def counted(*arguments):
    global calls
    calls += 1
    real(*arguments)
signals.all_reduce = counted

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
stop = signals.StopSignal()
with stop.handled():
    for iteration in range(3000):
        time.sleep(0.002 + 0.001 * rank)  # the processes' own pace differs
        if rank == 1 and iteration == 500:
            os.kill(os.getpid(), signal.SIGTERM)
        # Every second iteration is within an accumulation, where no process may stop.
        if stop.agreed_in_time(may_stop=iteration % 2 == 1):
            break
open(f"{sys.argv[1]}/{rank}", "w").write(f"{iteration} {calls} {stop.number}")
torch.distributed.barrier()  # a process that exits with open connections can abort
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM to send to oneself")
def test_two_processes_stop_after_the_same_iteration_and_exchange_twice_a_second(tmp_path: Path) -> None:
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*command, str(script), str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
    )
    assert ended.returncode == 0, ended.stderr
    (one, calls, number), (other, _, other_number) = ((tmp_path / rank).read_text().split() for rank in "01")
    assert one == other and number == other_number == "15"
    assert int(one) % 2 == 1
    assert 500 <= int(one) < 2500  # far from the end: the signal was noticed
    assert int(calls) < int(one) / 10
