#!/usr/bin/env bash
# The fast tests with the oldest versions that pyproject.toml allows: what it states, a user may have installed.
# Needs uv. Takes a folder for the virtual environment, which is kept if it is given.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-$(mktemp -d)/venv}
[ $# -gt 0 ] || trap 'rm -rf "$(dirname "$venv")"' EXIT
uv venv --quiet --seed "$venv"
# --resolution lowest-direct: the lower bounds of what this project names; what those need is as new as they allow.
uv pip install --quiet --python "$venv/bin/python" --resolution lowest-direct -e '.[test]'
uv pip list --python "$venv/bin/python" | grep -iE '^(torch|torchvision|timm|ray|optuna|pandas|plotly|pyarrow|numpy|scipy|scikit-learn|pydantic) '
. "$venv/bin/activate"
pytest --durations=5
