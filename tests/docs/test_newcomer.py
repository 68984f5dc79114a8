"""The pages' commands, run one after the other as a newcomer would, with less to do (see ``stand_in.py``).

Every shell and Python block of a page of JOBS is run by ``make test-slow``, and by ``make test`` as well where
``<!-- test: quick -->`` stands above it. ``<!-- test: skip, reason -->`` is the only way out.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pages import ROOT, Block, blocks

from mmflowers.utils.files import file_sha256

JOBS = (
    "README.md",
    "docs/your-own-photos.md",
    "docs/teaching.md",
    "docs/firewall.md",
    "docs/cluster.md",
    "docs/better-accuracy.md",
)
RUN = ("bash", "python")
NOT_RUN = ("text", "csv", "yaml", "mermaid")
CLASSES = ("daisy", "rose", "tulip")

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the pages' commands are written for a POSIX shell")


@pytest.fixture
def house(tmp_path: Path, dataset: Path) -> Path:
    """A checkout to work in, with what a user brings: photos of three classes, and python stood in for."""
    here = tmp_path / "mmflowers"
    here.mkdir()
    for name in ("tools", "mmflowers", "Makefile", "requirements.txt", "pyproject.toml"):
        (here / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "configs", here / "configs")
    for name in CLASSES:
        shutil.copytree(dataset / "train" / name, here / "my_photos" / name)
        shutil.copytree(dataset / "val" / name, here / "photos", dirs_exist_ok=True)
        shutil.copy(next((dataset / "val" / name).iterdir()), here / f"{name}.jpg")
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("stand_in.py")}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / "venv" / ".made").touch()  # make has nothing to install
    return here


def run_blocks(found: list[Block], page: str, house: Path) -> None:
    """Run blocks in order; none may fail, show a traceback or reach the internet."""
    venv = house.parent / "venv"
    environment = {
        # A `make` around the tests hands its own variables, such as VENV, to those of the page.
        **{name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")},
        "PATH": f"{venv / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHON_EXEC": str(venv / "bin" / "python"),  # torchrun's
        "VENV": str(venv),
        "TORCH_HOME": str(house.parent / "torch"),
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for block in found:
        command = ["bash", "-euo", "pipefail", "-c", block.text]
        if block.language == "python":
            command = [sys.executable, "-c", block.text]
        with subprocess.Popen(
            command,
            cwd=house,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=500)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
        assert process.returncode == 0, f"{page}:{block.line}\n{block.text}\n{output[-4000:]}"
        assert "Traceback" not in output, f"{page}:{block.line}\n{output[-4000:]}"


@pytest.mark.parametrize("page", JOBS)
def test_every_block_says_what_it_is_and_why_it_is_not_run(page: str) -> None:
    for block in blocks(ROOT / page):
        assert block.language in RUN + NOT_RUN, f"{page}:{block.line}: a block of {block.language or 'no language'}"
        assert block.mark != "skip" or len(block.reason) > 10, f"{page}:{block.line}: skipped without a reason"
        assert not block.mark or block.language in RUN, f"{page}:{block.line}: nothing to {block.mark}"


@pytest.mark.slow
def test_a_newcomer_with_photos_of_their_own_gets_a_tested_classifier(house: Path) -> None:
    quick = [block for block in blocks(ROOT / "README.md") if block.mark == "quick"]
    assert quick
    run_blocks(quick, "README.md", house)
    assert (house / "work_dirs" / "mine" / "predictions_val.csv").is_file()


def test_make_flowers_runs_what_the_readme_says_it_does(house: Path) -> None:
    (block,) = (block for block in blocks(ROOT / "README.md") if "make flowers" in block.reason)
    # Within `make test` a make would say which folder it enters.
    command = ["make", "--no-print-directory", "--dry-run", "flowers", f"VENV={house.parent / 'venv'}"]
    planned = subprocess.run(command, cwd=house, capture_output=True, text=True, check=True).stdout
    assert [
        line.strip() for line in planned.replace(f"{house.parent}/venv/bin/", "").splitlines()
    ] == block.text.splitlines()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", JOBS)
def test_every_command_of_a_page_works(page: str, house: Path) -> None:
    put_weights_where_downloads_go(house.parent / "torch" / "hub" / "checkpoints", house / "configs")
    run_blocks([b for b in blocks(ROOT / page) if b.language in RUN and b.mark != "skip"], page, house)


def put_weights_where_downloads_go(folder: Path, configs: Path) -> None:
    """Untrained weights under the names of OpenMMLab's and torchvision's, as if they had been downloaded before.

    The digest that ends a name of OpenMMLab's is compared, so the configs get that of the file that lies here.
    """
    import torch
    from torchvision import models

    folder.mkdir(parents=True)
    digests = {}
    for network, names in (
        (models.resnet18, ("resnet18-f37072fd.pth", "resnet18_8xb32_in1k_20210831-fbbb1da6.pth")),
        (models.resnet50, ("resnet50_8xb32_in1k_20210831-ea4938fc.pth",)),
    ):
        for name in names:
            torch.save(network().state_dict(), folder / name)
            if "8xb32" in name:
                before, now = name[-12:-4], file_sha256(folder / name)[:8]
                (folder / name).rename(folder / name.replace(before, now))
                digests[before] = now
    for config in configs.glob("*.py"):
        text = config.read_text(encoding="utf-8")
        for before, now in digests.items():
            text = text.replace(before, now)
        config.write_text(text, encoding="utf-8")


@pytest.mark.slow
def test_the_slurm_job_queues_itself_again_and_goes_on(house: Path, dataset: Path) -> None:
    """The job script of docs/cluster.md with stand-ins for srun and scontrol, and one process."""
    (job,) = (block.text for block in blocks(ROOT / "docs" / "cluster.md") if "#SBATCH" in block.text)
    put_weights_where_downloads_go(house.parent / "torch" / "hub" / "checkpoints", house / "configs")
    (house / "flower_dataset").symlink_to(dataset)
    (house / "job.sh").write_text(job)
    programs = house.parent / "slurm"
    programs.mkdir()
    quick = "--laptop --cfg-options train_dataloader.num_workers=0 val_dataloader.num_workers=0"
    for name, script in (
        ("srun", f'echo $$ > srun.pid\nshift\nexec "{sys.executable}" "${{@/slurm/none}}" {quick}\n'),
        ("scontrol", 'echo "$@" >> scontrol.log\n'),
    ):
        (programs / name).write_text(f"#!/bin/bash\n{script}")
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TORCH_HOME": str(house.parent / "torch"),
        "SLURM_JOB_ID": "7",
    }
    codes = []
    for interrupted in (True, False):
        with (
            (house / "job.log").open("a") as log,
            subprocess.Popen(
                ["bash", "job.sh"], cwd=house, env=environment, stdout=log, stderr=log, start_new_session=True
            ) as process,
        ):
            try:
                while interrupted and process.poll() is None:
                    time.sleep(0.05)
                    if (house / "work_dirs" / "cluster" / "last.pth").is_file():  # an epoch of three is done
                        os.kill(int((house / "srun.pid").read_text()), signal.SIGTERM)
                        break
                codes.append(process.wait(300))
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)
                raise
    log = (house / "job.log").read_text()
    assert codes == [143, 0], log
    assert (house / "scontrol.log").read_text() == "requeue 7\n"
    assert "Epoch(val) [3]" in log and log.count("Epoch(val) [1]") <= 2, log
