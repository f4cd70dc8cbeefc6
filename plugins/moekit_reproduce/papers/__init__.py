"""The claims of this plugin, one paper a file: a spec with the sizes, and a function that returns the study."""
