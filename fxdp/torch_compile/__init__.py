"""The step of `torch.compile(model, backend="fxdp")`: what torch calls, and its account."""
