"""The package as pip installs it: what a wheel holds, and that this is enough to work in an empty folder."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

PARTS = ("mmflowers", "configs", "tools", "pyproject.toml", "model-index.yml", "MANIFEST.in", "README.md", "LICENSE")
Run = Callable[..., subprocess.CompletedProcess]

pytestmark = pytest.mark.skipif(
    os.name != "posix",
    reason="git on Windows checks the links of mmflowers/.mim out as text, so a wheel of it lacks the configs",
)


def call(*command: object, cwd: Path, **options) -> subprocess.CompletedProcess:
    """Run a command that must succeed, without the checkout on Python's path."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    pipes = dict(capture_output=True, text=True)
    result = subprocess.run([str(word) for word in command], cwd=cwd, env=env, check=False, **pipes, **options)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result


def wheel_of(source: Path, out: Path) -> Path:
    """The wheel that pip builds of a folder or an archive, with the environment's own setuptools."""
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "-q")
    call(sys.executable, "-m", "pip", "wheel", *offline, "-w", out, source, cwd=out)
    return next(out.glob("mmflowers-*.whl"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without tests and pages, for setuptools leaves a build/ there, and takes what it finds in one."""
    folder = tmp_path_factory.mktemp("source")
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    # None of these may get into it.
    (folder / "tests").mkdir()
    for stray in ("tests/test_stray.py", "configs/photo.jpg", "tools/notes.txt", "mmflowers/best.pth"):
        (folder / stray).touch()
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel_of(source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment that has the wheel installed, beside the libraries of the one that runs this.

    A path in a .pth file brings these, and not what .pth files among them bring: the checkout, installed as editable.
    """
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-index", "--no-deps", wheel, cwd=folder)
    site = call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).stdout.strip()
    libraries = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    Path(site, "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    where = call(python, "-c", "import mmflowers; print(mmflowers.__file__)", cwd=folder).stdout.strip()
    assert where == f"{site}/mmflowers/__init__.py"
    return python


@pytest.fixture
def mmflowers(python: Path, tmp_path: Path) -> Run:
    """Runs the console command in an empty folder, with what further options of ``subprocess.run`` say."""
    return lambda *words, **options: call(python.with_name("mmflowers"), *words, cwd=tmp_path, **options)


def contents(wheel: Path) -> dict[str, bytes]:
    """The files of a wheel but for pip's own, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.startswith("mmflowers-")}


def test_a_wheel_holds_the_package_the_configs_and_the_tools_and_nothing_else(wheel: Path) -> None:
    package = ROOT / "mmflowers"
    files = [path for path in package.rglob("*") if path.is_file() and not {"__pycache__", ".mim"} & set(path.parts)]
    expected = {path.relative_to(ROOT).as_posix(): path for path in files}
    shipped = [*(ROOT / "configs").rglob("*.py"), *(ROOT / "configs").rglob("*.yml"), *(ROOT / "tools").glob("*.py")]
    for path in [*shipped, ROOT / "model-index.yml"]:
        expected[f"mmflowers/.mim/{path.relative_to(ROOT).as_posix()}"] = path
    held = contents(wheel)
    assert sorted(held) == sorted(expected)
    assert [name for name, path in expected.items() if held[name] != path.read_bytes()] == []


@pytest.mark.slow
def test_an_sdist_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    call(sys.executable, "-c", build, tmp_path, cwd=source)
    sdist = next(tmp_path.glob("mmflowers-*.tar.gz"))
    assert contents(wheel_of(sdist, tmp_path)) == contents(wheel)
    with tarfile.open(sdist) as archive:
        assert not [name for name in archive.getnames() if "/tests" in name]


def test_each_edition_of_openmmlabs_packages_is_an_extra_and_none_a_dependency(python: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import requires; print('\\n'.join(requires('mmflowers')))"
    lines = call(python, "-c", code, cwd=tmp_path).stdout.splitlines()
    edition = re.compile(r"(onedl-)?(mmpretrain|mmengine|mmcv)(-lite)?==\S+; extra == \"(openmmlab|onedl)\"")
    found = [edition.fullmatch(line) for line in lines if re.match("(onedl-)?mm(pretrain|engine|cv)", line)]
    assert sorted((match[4], match[2]) for match in found) == [
        (extra, name) for extra in ("onedl", "openmmlab") for name in ("mmcv", "mmengine", "mmpretrain")
    ]
    assert all((match[1] == "onedl-") == (match[4] == "onedl") for match in found)


def test_an_installed_command_checks_a_config_of_ones_own(mmflowers: Run, tmp_path: Path, dataset: Path) -> None:
    (tmp_path / "mine.py").write_text("_base_ = 'mmflowers::_base_/../resnet50_flowers.py'\n", encoding="utf-8")
    result = mmflowers("check", "mine.py", "--data", dataset, "--weights", "none")
    assert result.stdout.startswith("0 errors")


@pytest.mark.slow
def test_from_an_empty_folder_to_a_report(mmflowers: Run, python: Path, tmp_path: Path) -> None:
    mmflowers("prepare", "--rendered", "10", "--out", "data")
    (tmp_path / "mine.py").write_text(
        """\
_base_ = [
    'mmflowers::_base_/datasets/flowers_224.py',
    'mmflowers::_base_/schedules/sgd_8e.py',
    'mmflowers::_base_/default_runtime.py',
]
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, base_channels=16, stem_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=5, in_channels=128, loss=dict(type='CrossEntropyLoss'), topk=(1, )))
data_preprocessor = dict(num_classes=5, mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True)
train_dataloader = dict(num_workers=0)
val_dataloader = dict(num_workers=0)
test_dataloader = val_dataloader
""",
        encoding="utf-8",
    )
    mmflowers("train", "mine.py", "--data", "data", "--weights", "none", "--laptop")
    assert "top-1" in mmflowers("test").stdout
    mmflowers("predict", "data/val", "--run", "work_dirs/mine", "--out", "predictions.csv")
    assert len((tmp_path / "predictions.csv").read_text(encoding="utf-8").splitlines()) == 1 + 10
    assert "report.html" in mmflowers("report").stdout

    # A shipped config by its name, and the two scripts as `mim train` and `mim test` call them.
    small = ("--cfg-options", "train_cfg.max_epochs=1", "train_dataloader.num_workers=0")
    trained = mmflowers("train", "resnet18_flowers", "--data", "data", "--weights", "none", "--laptop", *small)
    assert "/.mim/configs/resnet18_flowers.py, which mmflowers ships" in trained.stderr
    found = "import mmflowers, pathlib; print(pathlib.Path(mmflowers.__file__).with_name('.mim'))"
    mim = Path(call(python, "-c", found, cwd=tmp_path).stdout.strip())
    config = mim / "configs" / "resnet18_flowers.py"
    options = ("--launcher", "none", "--data", "data")
    scratch = ("--weights", "none", "--laptop", "--work-dir", "mim")
    assert "--gpus" not in call(python, mim / "tools" / "train.py", "-h", cwd=tmp_path).stdout  # or mim passes it
    call(python, mim / "tools" / "train.py", config, *options, *scratch, *small, cwd=tmp_path)
    result = call(python, mim / "tools" / "test.py", config, "mim/best.pth", *options, cwd=tmp_path)
    assert "top-1" in result.stdout
