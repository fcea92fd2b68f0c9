"""How published checkpoints are written down: config.json, names of tensors, files."""
