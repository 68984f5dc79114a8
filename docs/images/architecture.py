"""Write the drawing of the packages' imports into docs/architecture.md: python docs/images/architecture.py"""

from __future__ import annotations

from pathlib import Path

import grimp

PAGE = Path(__file__).parents[1] / "architecture.md"
BEGIN, END = "<!-- imports: written by docs/images/architecture.py -->\n", "<!-- end of imports -->"


def drawing() -> str:
    """Return the mermaid block of the imports between packages, without those that follow from others."""
    imports = package_imports()
    arrows = []
    for package, direct in sorted(imports.items()):
        indirect = {far for near in direct for far in reachable(near, imports)}
        arrows += [f"    {package} --> {other}" for other in sorted(direct - indirect)]
    return "\n".join(["```mermaid", "flowchart TD", *arrows, "```", ""])


def package_imports() -> dict[str, set[str]]:
    """Return for each package (or module) of mmflowers those that it imports, in any module and any function."""
    graph = grimp.build_graph("mmflowers", exclude_type_checking_imports=True)
    imports: dict[str, set[str]] = {name.split(".")[1]: set() for name in graph.find_children("mmflowers")}
    for module in graph.modules - {"mmflowers"}:
        for imported in graph.find_modules_directly_imported_by(module) - {"mmflowers"}:
            imports[module.split(".")[1]].add(imported.split(".")[1])
    del imports["__main__"]  # the command, like those in tools/
    return {package: others - {package} for package, others in imports.items()}


def reachable(package: str, imports: dict[str, set[str]]) -> set[str]:
    """Return the packages that a package imports directly or indirectly."""
    return imports[package] | {far for near in imports[package] for far in reachable(near, imports)}


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + drawing() + END + rest.partition(END)[2], encoding="utf-8")
