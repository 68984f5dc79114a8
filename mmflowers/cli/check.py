"""Check a config, its dataset folder and its weights before training starts.

examples:
  python tools/check.py configs/resnet50_flowers.py
  python tools/check.py configs/efficientnet_lite0_flowers.py --data my_dataset --deep
  python tools/check.py --data my_dataset            # the dataset folder alone

Warnings and errors are printed on stderr, one per line. The exit code is 2 if there is an error. docs/pitfalls.md
explains the checks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from mmflowers.cli.parser import Parser
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "config",
        nargs="?",
        help="config file, or the name of a shipped config (default: check only the dataset folder)",
    )
    parser.add_argument("--data", metavar="DIR", help="dataset folder (default: the config's)")
    parser.add_argument("--weights", metavar="FILE|none", help="same as in tools/train.py")
    parser.add_argument("--deep", action="store_true", help="decode every photo, compare train and val pixel by pixel")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="same as in tools/train.py")
    args = parser.parse_args(argv)
    if args.config is None and args.data is None:
        parser.error("a config or --data is needed")

    from mmflowers.checks.findings import report
    from mmflowers.checks.run import check_dataset

    if args.config is None:
        started = time.perf_counter()
        findings = check_dataset(args.data, deep=args.deep)
    else:
        with importing():  # imported here, so that the time of the checks excludes that of imports
            import mmflowers.datasets.flowers
            import mmflowers.engine.training  # noqa: F401
            from mmflowers.checks.run import check_config

        started = time.perf_counter()
        findings = check_config(
            args.config, data=args.data, weights=args.weights, cfg_options=args.cfg_options, deep=args.deep
        )
    seconds = time.perf_counter() - started
    errors = sum(finding.level == "error" for finding in findings)
    if args.json:
        print(
            json.dumps({"seconds": round(seconds, 3), "findings": [asdict(finding) for finding in findings]}, indent=1)
        )
    else:
        counts = [(errors, "error"), (len(findings) - errors, "warning")]
        told = ", ".join(f"{count} {name}{'' if count == 1 else 's'}" for count, name in counts)
        print(f"{told}, checked in {seconds:.1f} s", flush=True)
    report(findings)
