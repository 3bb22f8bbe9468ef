"""`PrivateModule`, and one step of it: lot, accumulation, account, inspection, reports."""
