#!/usr/bin/env bash
# Makes docs/images/rendered_flowers.jpg: the contact sheet of a small dataset of rendered flowers.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

$python tools/prepare_flowers.py --rendered 30 --out "$work/flowers"
cp "$work/flowers/contact_sheet.jpg" docs/images/rendered_flowers.jpg
