"""Where the package's pages come from: Jinja templates that refuse a name they weren't given."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def environment(package: str, *, autoescape: bool = True) -> Environment:
    """The templates in a package's folder ``templates``.

    Args:
        package: Its import name.
        autoescape: For HTML; a text that isn't HTML escapes for itself.
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
