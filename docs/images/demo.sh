#!/usr/bin/env bash
# Makes docs/images/demo.png: rendered flowers, a short training, and the demo page in Chromium, wide and on a phone.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d) demo=
trap 'kill $demo 2> /dev/null || true; wait; rm -rf "$work"' EXIT

$python tools/prepare_flowers.py --rendered 60 --out "$work/flowers"
$python tools/train.py configs/efficientnet_lite0_flowers.py --laptop --data "$work/flowers" --work-dir "$work/rendered_flowers"
$python tools/test.py "$work/rendered_flowers/best.pth"
$python tools/demo.py --run "$work/rendered_flowers" --port 7870 > "$work/address" &
demo=$!
until [ -s "$work/address" ]; do kill -0 $demo; sleep 1; done

$python - "$work/flowers/val" "$(command -v chromium)" <<'END'
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

photo = sorted(Path(sys.argv[1], "tulip").glob("*.jpg"))[2]
shots = []
with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=sys.argv[2], args=["--no-sandbox", "--disable-gpu"])
    for scheme, width, height in (("light", 960, 1010), ("dark", 400, 1010)):
        page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
        page.goto("http://127.0.0.1:7870")
        page.locator("#photos input").set_input_files(photo)
        page.locator(".result").wait_for()
        page.wait_for_timeout(1000)
        shots.append(Image.open(BytesIO(page.screenshot())).convert("RGB"))
    browser.close()
both = Image.new("RGB", (sum(shot.width for shot in shots), shots[0].height))
both.paste(shots[0], (0, 0))
both.paste(shots[1], (shots[0].width, 0))
both.quantize(256).save("docs/images/demo.png", optimize=True)
END
