"""fxdp's own torch ops, one schema each, with an implementation for CPUs."""
