"""The torch.compile backend `fxdp`, the step that it makes, and that step's account."""
