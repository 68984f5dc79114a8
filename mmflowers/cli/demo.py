"""Serve a web page that classifies photos with a trained run, from files or from the camera.

examples:
  python tools/demo.py                                    the last run in work_dirs, on http://127.0.0.1:7860
  python tools/demo.py --run work_dirs/mine --port 8000
  python tools/demo.py --host 0.0.0.0                     reachable from the local network
  python tools/demo.py --allow-host flowers.example       behind a proxy of that name
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mmflowers.cli.parser import Parser, existing_folder, natural
from mmflowers.utils.terminal import importing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, by default those of the process."""
    parser = Parser(description=__doc__)
    parser.add_argument(
        "--run",
        type=existing_folder,
        metavar="WORK_DIR",
        help="work dir of the run (default: the last run in work_dirs)",
    )
    parser.add_argument(
        "--data",
        type=existing_folder,
        metavar="DIR",
        help="dataset folder with the training photos (default: the one it was trained on, if it is still there)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, only this machine)",
    )
    parser.add_argument(
        "--allow-host",
        type=_host_name,
        action="append",
        default=[],
        metavar="NAME",
        help="additional host name under which browsers open the page; may be repeated",
    )
    parser.add_argument(
        "--port", type=_port, metavar="N", help="port to listen on (default: the first free one from 7860)"
    )
    parser.add_argument(
        "--workers", type=natural, default=2, metavar="N", help="processes that decode photos (default: 2)"
    )
    args = parser.parse_args(argv)

    from mmflowers.demo.serve import require_gradio, serve

    require_gradio()
    work_dir = args.run
    if work_dir is None:
        with importing():
            from mmflowers.engine.testing import last_run

        work_dir = last_run(Path("work_dirs"), "choose another one with --run")
    serve(
        work_dir,
        data=args.data,
        host=args.host,
        port=args.port,
        workers=args.workers,
        allow_hosts=args.allow_host,
    )


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a name like flowers.example, without https:// and port")
    return text


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 65535")
    return number
