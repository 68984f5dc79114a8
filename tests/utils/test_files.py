"""Locks, folders that appear complete, and hashes; atomic writes are tested in tests/attacks/test_disk.py."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mmflowers.utils.errors import InputError
from mmflowers.utils.files import creating_folder, file_sha256, locked, open_regular

HOLD = """
import sys, time
from mmflowers.utils.files import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_has_one_holder_and_its_file_is_deleted(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with locked(lock):
        with pytest.raises(TimeoutError), locked(lock):
            pass
        with pytest.raises(InputError, match="busy"), locked(lock, busy=lambda: InputError("busy")):
            pass
        assert lock.exists()
    assert not list(tmp_path.iterdir())
    with locked(lock):
        pass


def test_those_who_wait_for_a_lock_get_it_one_after_the_other(tmp_path: Path) -> None:
    inside, most = [], []

    def enter() -> None:
        for _ in range(10):
            with locked(tmp_path / ".lock", timeout=-1):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(most), max(most)) == (40, 1)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        with pytest.raises(TimeoutError), locked(lock):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    with locked(lock):
        pass


def test_an_error_inside_a_lock_is_the_callers(tmp_path: Path) -> None:
    with (
        pytest.raises(TimeoutError, match="of the caller"),
        locked(tmp_path / ".lock", busy=lambda: InputError("busy")),
    ):
        raise TimeoutError("of the caller")
    assert not list(tmp_path.iterdir())


def test_a_folder_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    leftover = tmp_path / "photos.incomplete"
    leftover.mkdir()
    (leftover / "of a killed run").touch()
    with pytest.raises(KeyboardInterrupt), creating_folder(tmp_path / "photos") as folder:
        (folder / "a").touch()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with creating_folder(tmp_path / "photos") as folder:
        (folder / "a").touch()
        assert not (tmp_path / "photos").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "a"]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) + 1])
def test_a_hash_is_that_of_the_whole_file(size: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data := os.urandom(size))
    assert file_sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(tmp_path / "pipe")
