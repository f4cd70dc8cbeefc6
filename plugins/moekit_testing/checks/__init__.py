"""The conformance checks: a file for each kind of component, and ``common`` for all."""
