"""The verbs of moekit itself, as static text: ``moekit --help`` prints it without looking for plugins."""

VERBS = {
    "ls": "list recipes and components",
    "show": "explain a component or a recipe",
    "plugins": "list plugins, and why some failed",
    "config": "print, validate or compare specs",
    "params": "count parameters, total and active, part by part",
    "plan": "estimate memory per device and traffic of a run on many devices",
    "bench": "measure layers, routers and training steps, side by side",
    "train": "train a recipe",
    "generate": "generate text with a trained language model",
    "export": "write a trained model's weights to one safetensors file",
}
"""The verbs and their summaries, in the order of the first page. A test compares them with each ``SUMMARY``."""
