"""What differential privacy asks of the training loop around the compiled step.

`sampling` draws the batches as the accountant assumes; `accounting` says what they cost.
"""
