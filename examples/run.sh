#!/usr/bin/env bash
# Installs the example plugins and runs their tests; lists one, and trains its recipe for 20 steps. PYTHON must have
# moekit. Plugins go to a temporary folder; your environment does not change. Usage: examples/run.sh [PYTHON]
set -euo pipefail

python=${1:-python}
examples=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" MOEKIT_STRICT_PLUGINS=1
for plugin in moekit-flex-olmo moekit-expert-choice; do
  cp -r "$examples/$plugin" "$work/$plugin" # building leaves nothing behind in the tree
  "$python" -m pip install -q --disable-pip-version-check --no-deps --upgrade --target "$work/site" "$work/$plugin"
  cd "$work/$plugin"
  "$python" -m pytest -q -p no:cacheprovider
done
"$python" -m moekit plugins | grep flex_olmo
"$python" -m moekit plugins | grep expert_choice
"$python" -m moekit show expert_choice
"$python" -m moekit config validate recipe.yaml
"$python" -m moekit train recipe.yaml trainer.max_steps=20 --out "$work/runs"
