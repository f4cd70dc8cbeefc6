"""Using a trained model: incremental decoding, text generation, export of weights."""
