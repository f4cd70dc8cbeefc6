"""Specs: how options are declared, loaded, overridden, validated, compared and printed. Torch-free."""
