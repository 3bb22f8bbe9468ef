"""The same noise for two modules, which no seed gives them."""

import fxdp
from fxdp.mechanism.run_key import BRANCH
from fxdp.privacy.ledger import Ledger


def same_noise(private: fxdp.PrivateModule, seed: int = 1) -> None:
    """Begin a run anew, with a key that a number decides, and with an empty ledger."""
    keys, account = private._stepper.keys, private._account
    keys.root, keys.drawn, keys.branch = seed.to_bytes(32), 0, BRANCH[0]
    account.ledger = Ledger(account.ledger.accountant, account.ledger.neighbours)
