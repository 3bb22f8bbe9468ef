"""fxdp-lint: the proof as a command, on model files that nobody has to run on data."""
