#!/usr/bin/env bash
# Makes docs/images/report.png: rendered flowers, a short training, and the page in Chromium without some of its sections.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command -v chromium > /dev/null || { echo "error: no chromium · hint: the picture is of a page that it shows" >&2; exit 2; }

$python tools/prepare_flowers.py --rendered 60 --out "$work/flowers"
$python tools/train.py configs/efficientnet_lite0_flowers.py --laptop --data "$work/flowers" --work-dir "$work/rendered_flowers"
$python tools/test.py "$work/rendered_flowers/best.pth"
$python tools/report.py "$work/rendered_flowers" --cam --out "$work/report.html"

shorter='<style>#origin, #classes, #unsure, #calibration, #left-out, footer, .large > :nth-child(n + 6) { display: none }</style>'
sed -i "s|</head>|$shorter</head>|" "$work/report.html"
chromium --headless --no-sandbox --hide-scrollbars --user-data-dir="$work/profile" --window-size=1000,2100 \
    --blink-settings=preferredColorScheme=1 --screenshot="$work/page.png" "file://$work/report.html"
$python -c "
import sys
from PIL import Image
page = Image.open(sys.argv[1]).convert('RGB')
page.quantize(256).save('docs/images/report.png', optimize=True)
" "$work/page.png"
