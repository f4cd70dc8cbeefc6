"""Training that is spread over several processes."""
