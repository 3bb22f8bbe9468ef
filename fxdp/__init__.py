"""fxdp."""
