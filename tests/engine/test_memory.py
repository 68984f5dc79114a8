"""Freed memory stays the process's: the kernel is not asked for the same pages again and again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

STEPS = """
import resource
import torch
from mmflowers.engine.memory import keep_freed_memory

assert not {keep} or keep_freed_memory()

def step():
    return sum(float(torch.ones(16_000_000).sum()) for _ in range(2))

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_steps_after_the_first_need_no_new_pages() -> None:
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", STEPS.format(keep=keep)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    assert faults(keep=True) * 10 < faults(keep=False)
