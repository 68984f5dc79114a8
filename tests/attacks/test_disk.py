"""Disks that are full, read-only or wrong: one line, nothing of the old lost, nothing half-written left."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_tool
from PIL import Image
from pyarrow import parquet

from mmflowers.evaluation.predictions import Predictions, write_predictions
from mmflowers.evaluation.report import read_report_data
from mmflowers.inference.classifier import Prediction
from mmflowers.inference.inputs import Input
from mmflowers.inference.output import ClassFolders, open_output
from mmflowers.preparation.options import PrepareOptions
from mmflowers.preparation.prepare import prepare
from mmflowers.utils.errors import InputError
from mmflowers.utils.files import AtomicFile, creating, explained, replacing, write_bytes, write_csv, write_text
from mmflowers.visualization.report import write_report

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no mounts, limits and modes")

FOUND = Prediction("a.jpg", 0, "rose", 0.75, (("rose", 0.75),))


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if "partial" in path.name or "incomplete" in path.name]


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[bool]:
    """A tmpfs on ``folder``, and whether there is one: only root can mount, and not in every container."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "none", folder, *options]
    is_mounted = not subprocess.run(command, capture_output=True, check=False).returncode
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file of this process can become larger, in bytes: what a full disk does, for everybody to have."""
    import resource

    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk that is full, where one can be mounted; else one in which no file can grow."""
    folder = tmp_path / "full"
    with mounted(folder, "-o", "size=64k") as is_mounted:
        if not is_mounted:
            with files_of_at_most(0):
                yield folder
            return
        with (folder / "filler").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(4096))
        yield folder


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A folder that nothing can be written to, not even by root."""
    folder = tmp_path / "ro"
    with mounted(folder) as is_mounted:
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        elif os.geteuid() == 0:
            pytest.skip("root can write to every folder, and this container lets root mount no read-only one")
        else:
            folder.chmod(0o555)
        yield folder
        if not is_mounted:
            folder.chmod(0o755)


@pytest.fixture(params=["full", "read_only"])
def bad_disk(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


REFUSED = r"can't write .*: (No space left on device|File too large|Read-only file system|Permission denied)"


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset folder and the work dir of a tested run on it, as far as a report reads them."""
    here = tmp_path_factory.mktemp("tested")
    images = []
    for name in ("daisy", "rose"):
        (here / "data" / "val" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(here / "data" / "val" / name / "a.jpg")
        images.append(f"val/{name}/a.jpg")
    (here / "data" / "classes.txt").write_text("daisy\nrose\n")
    (here / "data" / "val.txt").write_text("val/daisy/a.jpg 0\nval/rose/a.jpg 1\n")
    (here / "run").mkdir()
    scores = np.array([[0.9, 0.1], [0.8, 0.2]], dtype=np.float32)
    predictions = Predictions(images, np.array([0, 1]), scores, ["daisy", "rose"])
    write_predictions(predictions, here / "run" / "predictions_val.csv")
    return here


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six photos in two class folders. To be named before a bad disk: where none can be mounted, no file can grow."""
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("daisy", "rose"):
        (folder / name).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


# ------------------------------------------------------------------------------------------------- each writer alone


def test_a_predictions_file_on_a_bad_disk_is_refused_in_a_line(bad_disk: Path, tested: Path) -> None:
    predictions = Predictions(["a.jpg"], np.array([0]), np.ones((1, 1), dtype=np.float32), ["rose"])
    with pytest.raises(InputError, match=REFUSED) as caught:
        write_predictions(predictions, bad_disk / "predictions_val.csv")
    assert len(str(caught.value).splitlines()) == 1 and str(bad_disk / "predictions_val.csv") in str(caught.value)
    assert not partials(bad_disk)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_on_a_bad_disk_are_refused_in_a_line(kind: str, bad_disk: Path) -> None:
    with pytest.raises(InputError, match=REFUSED), open_output(bad_disk / f"x.{kind}", 1) as write:
        for _ in range(9):
            write([FOUND] * 999)
    assert not partials(bad_disk) and not (bad_disk / f"x.{kind}").exists()


def test_a_report_on_a_bad_disk_is_refused_in_a_line(bad_disk: Path, tested: Path) -> None:
    out = bad_disk if bad_disk.name == "full" else bad_disk / "report"
    with pytest.raises(InputError, match=REFUSED):
        write_report(read_report_data([tested / "run"], data=tested / "data"), out / "report.html")
    assert not partials(bad_disk)


@pytest.mark.parametrize("rendered", [True, False])
def test_a_preparation_on_a_bad_disk_is_refused_in_a_line(rendered: bool, source: Path, bad_disk: Path) -> None:
    arguments = {"rendered": 1} if rendered else {"source": source, "link": "hardlink"}
    with pytest.raises(InputError, match=rf"{REFUSED}|MB free"):
        prepare(PrepareOptions(out=bad_disk / "data", workers=1, **arguments))
    assert not partials(bad_disk) and not (bad_disk / "data").exists()


@pytest.mark.parametrize("rendered", [True, False])
def test_a_disk_that_fills_up_during_a_preparation_leaves_nothing(
    rendered: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 1 << 40))
    small = tmp_path / "small"
    arguments = {"rendered": 2} if rendered else {"source": source}
    with mounted(small, "-o", "size=48k") as is_mounted, contextlib.ExitStack() as limits:
        if not is_mounted:
            limits.enter_context(files_of_at_most(2048))
        told = (
            r"can't write .*: (No space left on device · hint: free disk space|File too large · hint: raise the limit)"
        )
        with pytest.raises(InputError, match=told):
            prepare(PrepareOptions(out=small / "data", workers=1, **arguments))
        assert not list(small.iterdir())


def test_a_photo_that_cannot_be_sorted_leaves_no_half_of_it(bad_disk: Path) -> None:
    with pytest.raises(InputError, match=REFUSED):
        ClassFolders(bad_disk, ("rose",)).add(Input("a.jpg", bytes(1 << 20)), "rose")
    assert not list(bad_disk.rglob("a.jpg"))


def test_an_overlay_that_cannot_be_written_leaves_no_half_of_it(bad_disk: Path) -> None:
    from mmflowers.inference.grad_cam import OverlayFolder

    class Classifier:
        model = None

    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8))
    overlays = OverlayFolder(bad_disk, Classifier())
    with pytest.raises(OSError, match=r"No space|too large|Read-only|denied"):
        overlays._save(noise, "a")
    assert not list(bad_disk.rglob("a.jpg"))


# ---------------------------------------------------------------------------------------------------- the commands


@pytest.mark.slow
def test_commands_on_a_read_only_disk_end_in_a_line(
    trained: Path, dataset: Path, read_only: Path, tmp_path: Path
) -> None:
    photo = next((dataset / "val").glob("*/*.jpg"))
    for command in (
        ("prepare_flowers.py", "--rendered", 1, "--out", read_only / "data"),
        ("test.py", trained / "best.pth", "--data", dataset, "--skip-checks", "--work-dir", read_only / "work"),
        ("predict.py", photo, "--run", trained, "--out", read_only / "x.csv"),
        ("export.py", "--run", trained, "--data", dataset, "--formats", "slim", "--out", read_only / "export"),
        ("browse.py", trained / "tiny.py", "--data", dataset, "--number", 1, "--out", read_only / "views.png"),
    ):
        result = run_tool(*command, cwd=tmp_path)
        last = result.stderr.splitlines()[-1]
        assert result.returncode == 2, (command, result.stderr)
        assert last.startswith(f"error: can't write {read_only}"), (command, last)
        assert " · hint: check the write permissions, or " in last and "Traceback" not in result.stderr


def no_file_grows() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.slow
def test_check_says_its_findings_where_stdout_is_full(dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "check.py"), "--data", str(dataset), "--json"]
    with (tmp_path / "out").open("wb") as sink:
        how = {"stdout": sink, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "check": False}
        result = subprocess.run(command, preexec_fn=no_file_grows, **how)
    assert result.returncode != 0  # what a script reads is not there, and the exit code says so


# ---------------------------------------------------------------------------------------- what lay there before stays


@pytest.mark.slow
def test_a_prediction_that_is_refused_leaves_the_old_rows(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("old")
    result = run_tool("predict.py", "empty", "--run", trained, "--out", "rows.csv", cwd=tmp_path)
    assert result.returncode == 2
    assert (tmp_path / "rows.csv").read_text() == "old" and not partials(tmp_path)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("error", [InputError("bad"), RuntimeError("bug"), KeyboardInterrupt()])
def test_the_old_rows_stay_until_the_last_is_written(kind: str, error: BaseException, tmp_path: Path) -> None:
    out = tmp_path / f"rows.{kind}"
    out.write_text("old")
    for number in (1, 2):
        with pytest.raises(type(error)), open_output(out, 1) as write:
            write([FOUND])
            assert out.read_text() == "old"
            raise error
        kept = [f"rows.partial.{kind}", f"rows.partial_2.{kind}"][:number]
        expected = kept if isinstance(error, KeyboardInterrupt) else []
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([out.name, *expected])
    with open_output(out, 1) as write:
        write([FOUND])
    assert "a.jpg" in out.read_text()


def test_a_stop_before_the_first_row_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), open_output(tmp_path / "rows.csv", 1):
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["write", "fsync", "replace"])
@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)),
        KeyboardInterrupt(),
    ],
)
def test_whatever_fails_at_whatever_step_the_old_file_stays(
    stage: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise error

    if stage == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif stage == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError
    with pytest.raises(expected, match=None if expected is KeyboardInterrupt else r"can't write .*x\.txt: "):
        if stage == "write":
            with explained(path), replacing(path) as file:
                file.write(b"new")
                fail()
        else:
            write_text(path, "new")
    assert path.read_text() == "old" and [found.name for found in tmp_path.iterdir()] == ["x.txt"]


# ---------------------------------------------------------------------------------------------- paths of every kind


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda here: here / "no" / "x.csv", r"No such file or directory · hint: create its folder first"),
        (lambda here: here / "file" / "x.csv", r"Not a directory · hint: choose a path in which"),
        (lambda here: here, r"Is a directory · hint: give the path of a file"),
        (lambda here: here / ("x" * 300 + ".csv"), r"File name too long · hint: choose a shorter name"),
        (lambda here: here / "loop.csv", r"Too many levels of symbolic links · hint: write to another place"),
    ],
)
def test_a_path_that_is_wrong_is_named(make: Callable[[Path], Path], what: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop.csv").symlink_to("loop.csv")
    path = make(tmp_path)
    with pytest.raises(InputError, match=what) as caught:
        write_csv(path, [["a"]])
    assert f"can't write {path}: " in str(caught.value)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "loop.csv"]


def test_names_as_long_as_a_disk_takes_them_are_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "花" * 85):
        write_text(tmp_path / name, "whole")
        assert (tmp_path / name).read_text() == "whole"


def test_a_link_is_followed_and_modes_are_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "x.csv", tmp_path / "link.csv"
    link.symlink_to(target)
    write_text(link, "made")  # of a link that leads nowhere yet
    target.chmod(0o640)
    write_text(link, "replaced")
    assert link.is_symlink() and target.read_text() == "replaced"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    before = os.umask(0o027)
    write_text(tmp_path / "new", "")
    os.umask(before)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_write_protected_file_is_not_replaced() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o777)
        path = Path(folder, "x")
        with not_as_root():
            path.write_text("old")
            path.chmod(0o444)
            with pytest.raises(InputError, match="Permission denied"):
                write_text(path, "new")
            assert path.read_text() == "old"


@contextmanager
def not_as_root() -> Iterator[None]:
    """As a user whom modes of files bind."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)  # nobody
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_fifo_is_written_to_and_stays_one(tmp_path: Path) -> None:
    fifo = tmp_path / "rows.csv"
    os.mkfifo(fifo)
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_text()))
    reader.start()
    with open_output(fifo, 1) as write:
        write([FOUND])
    reader.join(10)
    assert got == ["path,class,score,reason\na.jpg,rose,0.75,\n"]
    assert stat.S_ISFIFO(fifo.stat().st_mode) and not partials(tmp_path)


def test_stdout_gets_rows_wherever_it_leads_and_what_it_holds_stays(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").symlink_to("/dev/stdout")
    code = "from mmflowers.utils.files import write_text; write_text('rows.csv', 'new\\n')"
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert piped.stdout == "new\n"
    with (tmp_path / "log").open("a") as log:
        log.write("old\n")
        log.flush()
        subprocess.run(command, cwd=tmp_path, env=environment, stdout=log, check=True)
    assert (tmp_path / "log").read_text() == "old\nnew\n"
    assert (tmp_path / "rows.csv").is_symlink() and not partials(tmp_path)


def test_writers_at_the_same_time_leave_one_of_theirs_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([number]) * 300_000 for number in range(8)]
    threads = [threading.Thread(target=write_bytes, args=(path, content)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and list(tmp_path.iterdir()) == [path]


def test_a_new_file_is_never_made_over_another_nor_left_in_half(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError), creating(tmp_path / "there"):
        pass
    with pytest.raises(KeyboardInterrupt), creating(tmp_path / "new") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_parquet_file_is_kept_and_replaced_as_the_others_are(tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    out.write_text("old")
    with pytest.raises(KeyboardInterrupt), open_output(out, 1) as write:
        write([FOUND])
        raise KeyboardInterrupt
    assert out.read_text() == "old"
    assert parquet.read_table(tmp_path / "rows.partial.parquet").to_pylist()[0]["class"] == "rose"


def test_an_abandoned_file_is_no_file(tmp_path: Path) -> None:
    whole = AtomicFile(tmp_path / "x", text=True)
    whole.file.write("ü\r\n")
    whole.discard()
    assert not list(tmp_path.iterdir())
