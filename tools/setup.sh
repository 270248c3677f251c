#!/usr/bin/env bash
# Make the environment: setup.sh PYTHON FOLDER. Every file that pip takes from the index has a hash of requirements.lock.
set -euo pipefail
python=$1 venv=$2
cd "$(dirname "$0")/.."
"$python" - <<'END'
import sys

if not (3, 11) <= sys.version_info[:2] <= (3, 13):
    here = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: {sys.executable} is Python {here}; nxm runs on 3.11 to 3.13: make setup PYTHON=python3.13")
END
"$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip "$@"; }

# The build of torch for which pip is set up here, whether that on the package index (for CUDA) or PyTorch's own for the
# CPU. Asked for with hashes, pip would always take the index's, so it is fetched first and its hash is checked after.
lock=$(sed -n '/^torch==/,/[^\\]$/p' requirements.lock)
torch=$venv/torch
mkdir -p "$torch"
pip download --quiet --no-deps --dest "$torch" "${lock%% *}"
pip install --quiet --require-hashes --no-deps --no-index --find-links "$torch" --requirement <(echo "$lock")
rm -r "$torch"

pip install --quiet --require-hashes --no-deps --requirement requirements.lock
if pip show torch | grep -q '^Requires:.*nvidia'; then
    pip install --quiet --require-hashes --no-deps --requirement requirements-cuda.lock
fi
pip install --quiet --no-deps --no-build-isolation --editable .
pip check
