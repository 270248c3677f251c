#!/usr/bin/env bash
# Renew requirements.lock: the versions that pyproject.toml's needs resolve to today, in a fresh environment.
# torch's own version suffix (+cpu) and its CUDA libraries are left out: torch names the right ones for each platform.
set -euo pipefail
python=${1:-python3}
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --upgrade pip setuptools wheel
"$work/venv/bin/python" -m pip install --quiet ".[export,study,dev]"
{
    echo "# Made by \`make lock\` from pyproject.toml: every package of the environment, pinned."
    "$work/venv/bin/python" -m pip freeze --all --exclude nxm |
        grep -viE '^(nvidia-[^m]|cuda-|triton)' | sed -E 's/^(torch==[^+]+)\+.*/\1/'
} > "$work/lock"
mv "$work/lock" requirements.lock
echo "requirements.lock: $(grep -c == requirements.lock) packages"
