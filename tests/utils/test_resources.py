"""What memory is left, and that freed memory stays the process's."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mmflowers.utils.resources import available_memory

STEPS = """
import resource
import torch
from mmflowers.speed.memory import keep_freed_memory

assert not {keep} or keep_freed_memory()

def step():
    return sum(float(torch.ones(16_000_000).sum()) for _ in range(2))

for _ in range(5):  # the heap finds its layout
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc's malloc")
def test_steps_after_the_first_ones_need_no_new_pages() -> None:
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", STEPS.format(keep=keep)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    assert faults(keep=True) * 10 < faults(keep=False)


MEMINFO = "MemTotal:       64000000 kB\nMemFree:         1000000 kB\nMemAvailable:   32000000 kB\n"
GB = 1_000_000_000


def machine(root: Path, cgroup: str, **groups: dict[str, str]) -> Path:
    """Files of Linux under ``root``: ``/proc``, and control groups by their folder below ``/sys/fs/cgroup``."""
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "meminfo").write_text(MEMINFO)
    (root / "proc" / "self" / "cgroup").write_text(cgroup)
    for folder, files in groups.items():
        group = root / "sys" / "fs" / "cgroup" / folder.replace("__", "/")
        group.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (group / name).write_text(content)
    return root


def version_2(limit: str, usage: int, inactive: int = 0) -> dict[str, str]:
    stat = f"anon {usage - inactive}\ninactive_file {inactive}\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{usage}\n", "memory.stat": stat}


def version_1(limit: int, usage: int, inactive: int = 0) -> dict[str, str]:
    stat = f"inactive_file 0\ntotal_inactive_file {inactive}\n"
    return {"memory.limit_in_bytes": f"{limit}\n", "memory.usage_in_bytes": f"{usage}\n", "memory.stat": stat}


def test_without_a_container_the_system_says_what_is_available(tmp_path: Path) -> None:
    assert available_memory(machine(tmp_path, "0::/\n")) == 32_000_000 * 1024


def test_a_container_of_version_2_leaves_its_limit_less_what_it_needs(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", **{".": version_2(str(8 * GB), 5 * GB, inactive=2 * GB)})
    assert available_memory(root) == 5 * GB  # files that were read can be dropped


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    groups = {
        "user": version_2(str(4 * GB), 3 * GB),
        "user__job": version_2("max", 2 * GB),
        "user__job__step": version_2(str(16 * GB), 2 * GB),
    }
    assert available_memory(machine(tmp_path, "0::/user/job/step\n", **groups)) == GB


@pytest.mark.parametrize("folder", ["memory__docker__4f2", "memory"], ids=["seen from the host", "from within"])
def test_a_container_of_version_1_likewise(tmp_path: Path, folder: str) -> None:
    lines = "12:cpu,cpuacct:/docker/4f2\n5:memory:/docker/4f2\n"
    root = machine(tmp_path, lines, **{folder: version_1(6 * GB, 2 * GB, inactive=GB)})
    assert available_memory(root) == 5 * GB


def test_a_container_that_is_over_its_limit_leaves_nothing_and_a_system_without_proc_says_nothing(
    tmp_path: Path,
) -> None:
    root = machine(tmp_path / "full", "0::/\n", **{".": version_2(str(GB), 2 * GB)})
    assert available_memory(root) == 0
    assert available_memory(tmp_path / "elsewhere") is None


def test_this_machine_has_memory_left() -> None:
    left = available_memory()
    assert left is None or left > 10_000_000
