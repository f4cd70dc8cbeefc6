"""The conformance checks, one file a kind of component."""
