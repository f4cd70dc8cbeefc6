#!/usr/bin/env bash
# Runs every example: the scripts, then the plugins (installs them, runs their tests; lists one, trains its recipe). All of it happens in a temporary folder; your environment does not change. A script whose packages are missing
# is skipped; with EXAMPLES=all it fails. Usage: examples/run.sh [PYTHON], a Python that has moekit.
set -euo pipefail

python=$(command -v "${1:-python}")
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

example() { # modules that it needs, separated by commas; script and arguments
    local needs=$1
    shift
    printf '\n-- examples/%s\n' "$*"
    if [ "${EXAMPLES:-}" != all ] && ! "$python" -c "import $needs" 2>/dev/null; then
        echo "skipped: it needs $needs: pip install -e '.[examples]'"
        return
    fi
    (cd "$work" && "$python" "$here/$@")
}

example moekit own_module.py
example sklearn vit_on_digits.py
example moekit fine_tune_import.py
example moekit notebook.py
example optuna optuna_search.py
example hydra hydra_tree/train.py -m router=topk,hash balancers=none hydra.sweep.dir="$work/hydra"
example jsonargparse lightning_cli/train.py fit --config "$here/lightning_cli/fit.yaml"
example jsonargparse lightning_cli/train.py validate --config "$here/lightning_cli/fit.yaml" --ckpt_path checkpoints/best.ckpt

export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}" MOEKIT_STRICT_PLUGINS=1
for plugin in moekit-flex-olmo moekit-expert-choice; do
    printf '\n-- examples/%s\n' "$plugin"
    cp -r "$here/$plugin" "$work/$plugin" # building leaves nothing behind in the tree
    "$python" -m pip install -q --disable-pip-version-check --no-deps --upgrade --target "$work/site" "$work/$plugin"
    cd "$work/$plugin"
    "$python" -m pytest -q -p no:cacheprovider
done
"$python" -m moekit plugins | grep flex_olmo
"$python" -m moekit plugins | grep expert_choice
"$python" -m moekit show expert_choice
"$python" -m moekit config validate recipe.yaml
"$python" -m moekit train recipe.yaml trainer.max_steps=20 --out "$work/runs"
