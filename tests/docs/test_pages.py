"""Every page's links lead somewhere, and its command lines are ones that the commands take. Nothing is run here."""

from __future__ import annotations

import argparse
import re
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from pages import PAGES, ROOT, Command, anchors, code_spans, commands, inline, links, name, shell_commands

from mmflowers.cli import parser as manners

TOOL = re.compile(r"tools/(\w+\.py)$")
COMMANDS = [path for path in (ROOT / "mmflowers" / "cli").glob("*.py") if (ROOT / "tools" / path.name).exists()]
COMMANDS.append(ROOT / "mmflowers" / "cli" / "prepare.py")
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FOREIGN = {"--force-reinstall", "--no-deps", "--gres", "--gpus-per-task", "--signal"}  # pip's and Slurm's
PICTURES = (".png", ".jpg", ".svg")


class Parsing(BaseException):
    """Ends a command where it would read its command line."""


@cache
def parser_of(tool: str) -> manners.Parser:
    """The parser that a tool, a path from the root, makes; folders that it asks for needn't be there."""

    def stop(self: manners.Parser, *_) -> None:
        raise Parsing(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manners.Parser, "parse_args", stop)
        patch.setattr("sys.argv", [tool])
        patch.syspath_prepend(str((ROOT / tool).parent))
        module = runpy.run_path(str(ROOT / tool))
        main = module.get("parse_arguments") or module["main"]
        patch.setitem(main.__globals__, "existing_folder", Path)
        with pytest.raises(Parsing) as reached:
            main()
    return reached.value.args[0]


def options_of(parser: manners.Parser) -> set[str]:
    found = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= {option for below in action.choices.values() for option in options_of(below)}
    return found


@cache
def all_options() -> set[str]:
    tools = [*(ROOT / "tools").glob("*.py"), ROOT / "benchmarks" / "peers" / "run.py"]
    return {option for path in tools for option in options_of(parser_of(str(path.relative_to(ROOT))))}


def as_tool(words: list[str]) -> list[str]:
    """The tool with its arguments that ``mmflowers COMMAND`` and ``mim run mmflowers TOOL`` run; others unchanged."""
    match words:
        case ["mmflowers", name, *arguments] | ["python", "-m", "mmflowers", name, *arguments]:
            return [f"tools/{'prepare_flowers' if name == 'prepare' else name}.py", *arguments]
        case ["mim", "run", "mmflowers", name, *arguments]:
            return [f"tools/{name}.py", *arguments]
    return words


def refused(command: Command, capsys: pytest.CaptureFixture) -> str:
    """Why a command of a page can't be run; "" where it can, or is none of ours."""
    where, words = command
    if words[0] == "make":
        unknown = [word for word in words[1:] if re.fullmatch("[a-z-]+", word) and word not in TARGETS]
        return f"{where}: no such target of the Makefile: {', '.join(unknown)}" if unknown else ""
    words = as_tool(words)
    at = next((at for at, word in enumerate(words) if TOOL.search(word)), None)
    if at is None:
        return ""
    tool = TOOL.search(words[at]).group(1)
    if not (ROOT / "tools" / tool).is_file():
        return f"{where}: there is no tools/{tool}"
    try:
        parser_of(f"tools/{tool}").parse_args(words[at + 1 :])
    except SystemExit as end:
        said = capsys.readouterr().err.strip()
        return f"{where}: {' '.join(words[at:])}: {said}" if end.code else ""
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_of_a_page_are_ones_that_there_are(page: Path, capsys: pytest.CaptureFixture) -> None:
    assert not [reason for command in commands(page) if (reason := refused(command, capsys))]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_options_and_files_that_a_page_names_are_there(page: Path) -> None:
    for span in code_spans(page):
        if option := re.match(r"--[a-z][\w-]*", span):
            assert option.group() in all_options() | FOREIGN, f"{name(page)}: `{span}`"
        if path := re.match(r"(?:configs|tools|tests|mmflowers|docs)/[\w./*-]*", span):
            assert list(ROOT.glob(path.group().rstrip("."))), f"{name(page)}: `{span}`"


def examples() -> Iterator[Command]:
    """What the commands give as examples in their own help, configs in their first lines, and the Makefile runs."""
    files = [
        *COMMANDS,
        ROOT / "tools" / "train_torch.py",
        *(ROOT / "configs").glob("*.py"),
        *ROOT.glob("docs/images/*.sh"),
    ]
    for path in [*files, ROOT / "Makefile"]:
        for line in path.read_text(encoding="utf-8").splitlines():
            line = re.sub(r"\$\(\w+\)", "1", line.lstrip("# \t").replace("$(BIN)/", "").removeprefix("$"))
            if re.match(r"(python|torchrun|find) ", line):
                yield from shell_commands(re.split(r" {3,}|\$\(", line)[0], name(path))


def test_examples_in_commands_and_configs_are_ones_that_there_are(capsys: pytest.CaptureFixture) -> None:
    found = list(examples())
    assert {command.where for command in found} > {name(path) for path in COMMANDS}
    assert not [reason for command in found if (reason := refused(command, capsys))]


def test_a_wrong_command_of_a_page_is_found(capsys: pytest.CaptureFixture) -> None:
    script = """\
X=1 python tools/train.py configs/resnet50_flowers.py \\
    --no-such-option | tee log
python tools/test.py --split vall
python tools/none.py && make demo nothing
torchrun --nproc-per-node 2 tools/train.py  # the config is missing
mmflowers prepare --rendered 20 && mmflowers train resnet50_flowers --no-flag
mim run mmflowers nothing --run work_dirs/mine
for seed in 0 1; do python tools/train.py CONFIG --seed $seed --work-dir "work_dirs/$seed"; done
"""
    reasons = [reason for command in shell_commands(script, "page") if (reason := refused(command, capsys))]
    wrong = ("--no-such-option", "vall", "tools/none.py", "nothing", "config", "--no-flag", "tools/nothing.py")
    for reason, word in zip(reasons, wrong, strict=True):
        assert reason.startswith("page: ") and word in reason


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in links(page):
        address = urlparse(link)
        if address.scheme or address.netloc:
            assert address.scheme in ("https", "mailto"), f"{name(page)}: {link}"
            assert "." in address.netloc and not re.search(r"\s", link), f"{name(page)}: {link}"
            continue
        target = (page.parent / unquote(address.path)).resolve() if address.path else page
        assert target.is_relative_to(ROOT.resolve()) and target.exists(), f"{name(page)}: {link} isn't there"
        assert target.name in {entry.name for entry in target.parent.iterdir()}, f"{name(page)}: {link}: other case"
        if address.fragment:
            assert address.fragment in anchors(target), f"{name(page)}: {link}: no such heading"


def test_every_page_of_docs_is_in_its_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / unquote(urlparse(link).path)).resolve() for link in links(index)}
    pages = {page.resolve() for page in PAGES if page.is_relative_to(index.parent)}
    assert not sorted(map(name, pages - linked - {index.resolve()})), "no line in docs/README.md links to these"


def test_every_picture_is_shown_and_made_by_a_script() -> None:
    folder = ROOT / "docs" / "images"
    images = [(page, token.attrGet("src")) for page in PAGES for token in inline(page) if token.type == "image"]
    shown = {(page.parent / source).resolve() for page, source in images}
    scripts = [path.read_text(encoding="utf-8") for path in folder.glob("*.sh")]
    for picture in (path for path in folder.iterdir() if path.suffix in PICTURES):
        assert picture.resolve() in shown, f"{name(picture)} is on no page"
        assert any(name(picture) in script for script in scripts), f"no script makes {name(picture)}"
