"""fxdp-lint: the proof as a command, for model files, without data."""
