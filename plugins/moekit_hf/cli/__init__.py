"""The verbs of this plugin, one module for each."""
