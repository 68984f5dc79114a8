"""Metadata of a run, read from its work dir: config, MMEngine's log of the environment, warnings of the checks.

No code of a work dir is executed. The config that MMEngine dumps is parsed as plain data.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mmflowers.datasets.wrappers import get
from mmflowers.utils.errors import InputError

ENVIRONMENT = re.compile(r"System environment:\n(.*?)\n-{60}", re.DOTALL)
VERSIONS = ("Python", "PyTorch", "TorchVision", "OpenCV", "MMEngine")


@dataclass(frozen=True)
class RunMetadata:
    """Metadata of a run; fields that weren't recorded are empty.

    Attributes:
        config_name: File name of the config in the work dir, "" without one.
        config: Top-level names of the config → values.
        environment: The environment that MMEngine logged at the last start of the run, name → text.
        warnings: Warnings of the checks, each with "where", "what" and "hint".
        data_root: Dataset folder of the last test, else of the training; None if no config names it.
    """

    config_name: str
    config: dict[str, Any]
    environment: dict[str, str]
    warnings: list[dict[str, str]]
    data_root: str | None

    @property
    def recipe(self) -> dict[str, str]:
        """Network, weights, schedule, metric of the best epoch and seed, as label → text."""
        backbone = get(self.config, "model.backbone") or {}
        variant = next((backbone[key] for key in ("model_name", "arch", "depth") if key in backbone), "")
        optimizer = get(self.config, "optim_wrapper.optimizer") or {}
        weights = self.config.get("load_from")
        size, tested = (_image_size(self.config, loader) for loader in ("train_dataloader", "test_dataloader"))
        hooks = self.config.get("custom_hooks") or []
        metric, rule = self.chosen_by if self.config.get("val_evaluator") else ("", "")
        found = {
            "command": next((hook["command"] for hook in hooks if isinstance(hook, dict) and "command" in hook), ""),
            "config": self.config_name,
            "network": f"{backbone.get('type', '')} {variant}".strip(),
            "weights from": PurePosixPath(str(weights).replace("\\", "/")).name if weights else "",
            "image size": size if size == tested else f"{size}, tested at {tested}",
            "epochs": _text(get(self.config, "train_cfg.max_epochs")),
            "best epoch by": f"the lowest {metric}" if rule == "less" else metric,
            "batch size": _text(get(self.config, "train_dataloader.batch_size")),
            "optimizer": f"{optimizer.get('type', '')}, learning rate {optimizer.get('lr')}" if optimizer else "",
            "seed": _text(get(self.config, "randomness.seed") or self.environment.get("seed")),
        }
        return {label: text for label, text in found.items() if text}

    @property
    def chosen_by(self) -> tuple[str, str]:
        """The metric that chose the best epoch, and "greater" or "less": which of two scores is better."""
        metric, rule = (get(self.config, f"default_hooks.checkpoint.{key}") for key in ("save_best", "rule"))
        metric = metric if isinstance(metric, str) and metric != "auto" else "accuracy/top1"
        return metric, "less" if rule == "less" else "greater"

    @property
    def machine(self) -> dict[str, str]:
        """Versions and hardware, as label → text."""
        found = {name: self.environment[name].split(" (")[0] for name in VERSIONS if name in self.environment}
        gpus = [text for name, text in self.environment.items() if re.fullmatch(r"GPU [\d,]+", name)]
        capability = re.search(r"CPU capability usage: (\w+)", self.environment.get("PyTorch compiling details", ""))
        hardware = ", ".join(gpus) or ("CPU" if self.environment.get("CUDA available") == "False" else "")
        if hardware == "CPU" and capability:
            hardware += f" with {capability[1]}"
        if self.environment.get("Distributed training") == "True":
            hardware += f", {self.environment.get('GPU number')} processes"
        return {**found, "hardware": hardware} if hardware else found


def read_run_metadata(work_dir: Path) -> RunMetadata:
    """Read the metadata of the run in ``work_dir``.

    Raises:
        InputError: ``checks.json`` can't be read.
    """
    configs = sorted(work_dir.glob("*.py"))
    trained = [read_settings(path) for path in configs]
    tested = [read_settings(path) for path in sorted(work_dir.glob("test/*.py"))]
    roots = (get(each, "test_dataloader.dataset.data_root") or each.get("data_root") for each in tested + trained)
    logs = sorted(work_dir.glob("*/*.log"))
    return RunMetadata(
        config_name=configs[0].name if configs else "",
        config=trained[0] if trained else {},
        environment=_environment(logs[-1]) if logs else {},
        warnings=_warnings(work_dir / "checks.json") + _warnings(work_dir / "test" / "checks.json"),
        data_root=next((root for root in roots if isinstance(root, str)), None),
    )


def find_dataset(work_dir: Path, recorded: str | None, given: Path | None = None) -> Path:
    """Return the path of a run's dataset folder.

    Args:
        work_dir: Of the run; it may have been copied or moved.
        recorded: The path in the run's config.
        given: The path given by the user, which replaces it.

    Raises:
        InputError: No path is known, or there is no such folder.
    """
    if given is not None:
        places = [given]
    elif recorded is not None:
        # A relative path starts where the training was started: the current folder, or one that contains the work dir.
        places = [Path(recorded), *(base / recorded for base in work_dir.resolve().parents)]
    else:
        raise InputError(f"{work_dir} has no config that names its dataset folder", "give it with --data")
    for place in places:
        if place.is_dir():
            return place
    raise InputError(f"no dataset folder at {places[0]}", "give its path with --data")


def read_settings(path: Path) -> dict[str, Any]:
    """Return the assignments of plain data in a config dumped by MMEngine; others are skipped."""
    settings = {}
    try:
        statements = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return {}
    for node in statements:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                settings[node.targets[0].id] = _plain(node.value)
            except ValueError:
                continue
    return settings


def _plain(node: ast.expr) -> Any:
    """Return the value of a literal, which may contain ``dict(type=…)`` as in configs."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _plain(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_plain(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {_plain(key): _plain(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    return ast.literal_eval(node)


def _image_size(config: dict[str, Any], loader: str) -> str:
    """Return the image size after the last transform that resizes or crops."""
    for step in reversed(get(config, f"{loader}.dataset.pipeline") or []):
        for key in ("crop_size", "scale"):
            if isinstance(step, dict) and key in step:
                size = step[key]
                return f"{' × '.join(map(str, size)) if isinstance(size, list) else size} px"
    return ""


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _environment(log: Path) -> dict[str, str]:
    found = ENVIRONMENT.search(log.read_text(encoding="utf-8", errors="replace"))
    lines = found[1].splitlines() if found else []
    pairs = [line.strip().partition(": ") for line in lines]
    environment = {name: value for name, _, value in pairs if value}
    # PyTorch's lines begin with a dash and are joined under their heading.
    environment["PyTorch compiling details"] = "\n".join(line for line in lines if line.strip().startswith("- "))
    return environment


def _warnings(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    try:
        return [{key: str(item[key]) for key in ("where", "what", "hint")} for item in json.loads(path.read_bytes())]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} can't be read: {error!r}", "delete it; the next training writes it again") from error
