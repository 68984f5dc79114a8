"""What a Markdown page or a notebook holds: fenced blocks, links, headings, and the command lines in all of them."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs").glob("*.ipynb"),
        ROOT / "flower_dataset" / "README.md",
        ROOT / "work_dirs" / "README.md",
    ]
)
SHELL = ("bash", "sh")
COMMAND = re.compile(r"(\w+=\S+ )*(python|make|torchrun|pip|mmflowers|mim) ")  # how a shell block of no language begins
MARK = re.compile(r"<!--\s*test:\s*(quick|skip)\b[,:]?\s*(.*?)\s*-->", re.DOTALL)


class Block(NamedTuple):
    """A fenced block.

    Attributes:
        line: Of its fence, from 1.
        language: The word after the fence, "" for none.
        text: What is in it.
        mark: From a comment right above, ``<!-- test: quick -->`` or ``<!-- test: skip, reason -->``; else "".
        reason: Of the mark.
    """

    line: int
    language: str
    text: str
    mark: str
    reason: str


class Command(NamedTuple):
    """A command of a shell line: where it stands, and its words without assignments and redirections."""

    where: str
    words: list[str]


def name(page: Path) -> str:
    """How a page is called in messages, and by which a test finds it."""
    return page.relative_to(ROOT).as_posix()


@cache
def markdown(page: Path) -> str:
    """The text of a page; of a notebook, its Markdown cells."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return text


@cache
def tokens(page: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(markdown(page))


def blocks(page: Path) -> list[Block]:
    found = []
    before: Token | None = None
    for token in tokens(page):
        if token.type == "fence":
            comment = MARK.search(before.content) if before is not None and before.type == "html_block" else None
            language = token.info.split()[0] if token.info.split() else ""
            found.append(Block(token.map[0] + 1, language, token.content, *(comment.groups() if comment else ("", ""))))
        before = token
    return found


def inline(page: Path) -> Iterator[Token]:
    """Text, code spans, links and images, wherever they are."""

    def below(token: Token) -> Iterator[Token]:
        for child in token.children or ():
            yield child
            yield from below(child)

    for token in tokens(page):
        yield from below(token)


def links(page: Path) -> list[str]:
    """Where links and images lead."""
    found = [token.attrGet("href") or token.attrGet("src") for token in inline(page)]
    return [str(target) for target in found if target]


def code_spans(page: Path) -> list[str]:
    return [" ".join(token.content.split()) for token in inline(page) if token.type == "code_inline"]


@cache
def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives a page's headings: lower case, spaces to hyphens, punctuation left out."""
    found: Counter[str] = Counter()
    result = set()
    for opening, heading in pairwise(tokens(page)):
        if opening.type == "heading_open":
            text = "".join(child.content for child in heading.children or () if child.type in ("text", "code_inline"))
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            result.add(f"{slug}-{found[slug]}" if found[slug] else slug)
            found[slug] += 1
    return result


def shell_commands(text: str, where: str) -> Iterator[Command]:
    """The commands of a script's lines; a variable has the last value that the script gives it, else 1."""
    text = text.replace("\\\n", " ")
    values = dict(re.findall(r"(?:^|[;\s])(\w+)=(\S*?)(?=;|\s|$)", text))
    for line in text.splitlines():
        line = re.sub(r"\d?>+ *\S+", "", line.removeprefix("$ "))  # redirections
        line = re.sub(r"\$\{?(\w+|\?)\}?", lambda match: values.get(match.group(1), "1"), line)
        line = re.sub(r"\{\w+\}", "1", line)  # a notebook's variables
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # no shell line, such as prose with an apostrophe
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word and set(word) <= set("();<>|&"):
                if command:
                    yield Command(where, command)
                command = []
            elif command or not re.fullmatch(r"\w+=.*", word):
                command.append(word)


def commands(page: Path) -> list[Command]:
    """Every command of a page's shell blocks, of a notebook's ``!`` lines, and of its code spans that begin as one."""
    found = []
    for block in blocks(page):
        if block.language in SHELL or (not block.language and COMMAND.match(block.text)):
            found += shell_commands(block.text, f"{name(page)}:{block.line}")
    if page.suffix == ".ipynb":
        for number, cell in enumerate(json.loads(page.read_text(encoding="utf-8"))["cells"], 1):
            if cell["cell_type"] == "code":
                shell = [line[1:] for line in "".join(cell["source"]).splitlines() if line.startswith("!")]
                found += shell_commands("\n".join(shell), f"{name(page)}, cell {number}")
    for span in code_spans(page):
        if COMMAND.match(span):
            found += shell_commands(span, f"{name(page)}: `{span}`")
    return found
