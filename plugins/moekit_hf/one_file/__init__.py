"""Export to one safetensors file, which holds the recipe too. Torch-free: options and component."""

from moekit.spec.kinds import ExporterSpec


class OneFile(ExporterSpec):
    """Options of the export: there are none."""
