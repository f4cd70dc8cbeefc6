from moekit.spec.dumping import dump as dump
from moekit.spec.dumping import to_config as to_config
from moekit.spec.dumping import to_plain as to_plain
from moekit.spec.loading import component_spec as component_spec
from moekit.spec.loading import load as load
from moekit.spec.loading import validate as validate
