#!/usr/bin/env bash
# Installs the example plugin, runs its tests, lists it, and trains its recipe for 20 steps. PYTHON must have moekit.
# The plugin goes to a temporary folder; your environment does not change. Usage: examples/run.sh [PYTHON]
set -euo pipefail

python=${1:-python}
plugin=$(cd "$(dirname "$0")" && pwd)/moekit-expert-choice
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cp -r "$plugin" "$work/plugin" # building leaves nothing behind in the tree
"$python" -m pip install -q --disable-pip-version-check --no-deps --target "$work/site" "$work/plugin"
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" MOEKIT_STRICT_PLUGINS=1

cd "$work/plugin"
"$python" -m pytest -q -p no:cacheprovider
"$python" -m moekit plugins | grep expert_choice
"$python" -m moekit show expert_choice
"$python" -m moekit config validate recipe.yaml
"$python" -m moekit train recipe.yaml trainer.max_steps=20 --out "$work/runs"
