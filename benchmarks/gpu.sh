#!/usr/bin/env bash
# The figures that docs/performance.md waits for from a GPU, in parts of some minutes each:
#
#   bash benchmarks/gpu.sh rates    DATASET WEIGHTS      images/s, ceiling, host syncs, memory, validation
#   bash benchmarks/gpu.sh accuracy DATASET WEIGHTS      start to the mean final accuracy of the stock recipe, 5 seeds
#   bash benchmarks/gpu.sh peers    DATASET WEIGHTS      the same against six other tools
#
# What follows WEIGHTS goes to benchmarks/benchmark.py (benchmarks/peers/run.py): --repeats 2, say. Tables and JSON lie in
# work_dirs/gpu, or in $OUT. Weights are a .pth of ResNet-50 in OpenMMLab's, torchvision's or timm's names; photos may be
# smaller than the originals (tools/prepare_flowers.py --resize 256), which leaves a loader less to decode.
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,7p' "$0"; exit 2; }
part=$1 data=$2 weights=$3
shift 3
python=${PYTHON:-.venv/bin/python}
out=${OUT:-work_dirs/gpu}
stock=configs/resnet50_flowers.py fast=configs/resnet50_flowers_fast.py
mkdir -p "$out"
bench() { "$python" benchmarks/benchmark.py train "${@:2}" --data "$data" --weights "$weights" --json "$out/$1.json" | tee "$out/$1.md"; }

case $part in
rates)
    bench rates_32 "$stock" "$fast" "$@"
    bench rates_128 "$stock" "$fast" "$@" --cfg-options train_dataloader.batch_size=128 val_dataloader.batch_size=256
    ;;
accuracy)
    bench stock "$stock" --to-accuracy 0 --repeats 5 "$@"
    mean='import json, statistics, sys
(stock,) = json.load(open(sys.argv[1]))["results"]
print(statistics.mean(run["last_accuracy"] for run in stock["rounds"]))'
    bench fast "$fast" --to-accuracy "$("$python" -c "$mean" "$out/stock.json")" --repeats 5 "$@"
    ;;
peers)
    "$python" benchmarks/peers/run.py --data "$data" --network resnet50 --weights "$weights" --val-resize 256 --val-size 224 \
        --epochs 5 --ours "$fast" --out "$out/peers" "$@"
    ;;
*)
    sed -n '2,7p' "$0"
    exit 2
    ;;
esac
