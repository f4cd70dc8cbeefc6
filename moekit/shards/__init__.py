"""What a process holds of tensors that no process need hold whole: shards, and the layout of a model's parameters."""
