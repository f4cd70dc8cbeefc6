"""moekit's own verbs, as static text: ``moekit --help`` prints them without looking for plugins."""

VERBS = {
    "ls": "list recipes and components",
    "show": "explain a component or a recipe",
    "plugins": "list plugins, and why some failed",
    "config": "print or validate specs",
    "train": "train a recipe",
    "generate": "generate text with a trained language model",
    "help": "list every verb, also those of plugins; or explain one",
}
"""The verbs and their summaries, in the order of the first page. Each is a module of ``moekit.cli``."""
