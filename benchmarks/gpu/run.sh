#!/usr/bin/env bash
# Everything worth measuring on a GPU, the most valuable first, on a bare machine without a network.
#
#     benchmarks/gpu/run.sh [--wheels DIR] [--only STEP ...] [--minutes 25] [--out DIR] [--cifar DIR] [--rehearse]
#
# Needs Python with torch; installs what is missing from --wheels, without asking any registry, and says what it lacks.
# Each step writes its result at once; a step that fails is reported and passed over. --rehearse runs every step on the
# CPU at a tiny size, so that the first minute on a GPU is not spent on a typing error.
set -uo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-python3}"
wheels=""
arguments=()
while [ $# -gt 0 ]; do
    if [ "$1" = "--wheels" ]; then wheels="${2:?--wheels needs a folder}"; shift 2; else arguments+=("$1"); shift; fi
done
if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "run.sh: $python has no torch, and a wheel of it is too large to bring along: use PYTHON=..." >&2
    exit 2
fi
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "run.sh: there is no folder $wheels" >&2; exit 2; }
    # one by one: what does not fit this machine must not keep the others out
    for wheel in "$wheels"/*.whl; do
        "$python" -m pip install --quiet --no-index --no-deps "$wheel" 2>/dev/null || echo "run.sh: passed over $(basename "$wheel")"
    done
fi
export HF_HUB_OFFLINE=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu.run ${arguments[@]+"${arguments[@]}"}
