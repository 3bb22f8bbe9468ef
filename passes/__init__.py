"""The passes of the compiler, one file each: what happens to the graph, in steps.

The folder stands at the top of the repository and is imported as `fxdp.passes`.
"""

if __name__ == "passes":
    # Under this name Python would load every module a second time, and what one copy makes
    # would be no instance of the other copy's classes.
    raise ImportError("import fxdp.passes: this folder is not a package of its own")
