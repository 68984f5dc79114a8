"""Jinja environment of the package's pages, in which undefined variables are errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(package: str, *, autoescape: bool = True) -> Environment:
    """Return the Jinja environment of the folder ``templates`` of a package.

    Args:
        package: Import name of the package.
        autoescape: Whether to escape HTML; templates of other formats escape themselves.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(package),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not autoescape,
    )
    made.filters["percent"] = lambda share, digits=1: f"{100 * share:.{digits}f} %"
    return made
