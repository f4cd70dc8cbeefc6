"""The verbs of this plugin, one file each. A verb imports torch only when it runs."""
