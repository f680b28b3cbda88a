#!/usr/bin/env bash
# Run the quick tests with the lowest versions that setup.cfg allows, in an environment of its own (needs uv):
#   tests/lowest.sh FOLDER [PYTEST ARGUMENTS]
set -euo pipefail
folder=${1:?usage: tests/lowest.sh FOLDER [PYTEST ARGUMENTS]}
shift
cd "$(dirname "$0")/.."
uv venv --quiet --allow-existing --python 3.11 "$folder"
uv pip install --quiet --python "$folder" --resolution lowest-direct -e ".[test]"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=Agg
exec "$folder/bin/python" -m pytest -m "not slow" -n 2 "$@"
