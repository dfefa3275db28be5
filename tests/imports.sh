#!/usr/bin/env bash
# Which module imports which, checked by the rules in pyproject.toml; `tests/imports.sh --graph` draws the floors.
# Import-linter looks for nested packages in nested folders, as a wheel installs them; in this repository they lie side
# by side. So it runs on a copy.
set -euo pipefail
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
python -c 'import sys; from pathlib import Path; from kdstudy.launch.common import copy_package
copy_package(Path(sys.argv[1]))' "$copy"
cd "$(dirname "$0")/.."
export PYTHONPATH=$copy
if [ "${1:-}" = --graph ]; then
    exec import-linter drawgraph kdstudy
fi
lint-imports --no-cache
