"""The verbs of this plugin, a module each."""
