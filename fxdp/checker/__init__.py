"""Checks a certificate against its model without a pass, and without a rule of `fxdp.ops`."""
