#!/bin/sh
# Runs the check of the pack that was unpacked here: sh run.sh [options of gpu_check]
set -e
here=$(cd "$(dirname "$0")" && pwd)
project="$here/project"
# a folder that has not come yet, such as that of onnxruntime-gpu, does no harm
PYTHONPATH="$here/onnxruntime-gpu:$project:$project/engines:$project/runtime:$here/site${PYTHONPATH:+:$PYTHONPATH}"
PYTHONUNBUFFERED=1
export PYTHONPATH PYTHONUNBUFFERED
exec python3 "$project/tools/gpu_check.py" --bundles "$here/bundles" "$@"
