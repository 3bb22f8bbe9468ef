"""`python -m fxdp.lint`: the same as `fxdp-lint`."""

from fxdp.lint.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
