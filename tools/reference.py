"""The API reference, from docstrings: `tools/docs`.

    tools/docs                    into build/docs, whose index.html is the page to open
    tools/docs --folder FOLDER    elsewhere

A page for `fxdp`, and one for each module that it exports or that a rule of one's own needs.
"""

import argparse
import warnings
from pathlib import Path

import pdoc
import pdoc.render

PAGES = (
    "fxdp",
    "fxdp.data",
    "fxdp.privacy",
    "fxdp.module.reports",
    "fxdp.mechanism.clipping",
    "fxdp.mechanism.noise",
    "fxdp.rules",
    "fxdp.placement",
    "fxdp.forms",
)


def build(folder: Path) -> None:
    """Write the pages into a folder.

    Raises:
        Warning: pdoc warned, for example of a name that it cannot resolve.
    """
    pdoc.render.configure(docformat="google", show_source=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\b")
        pdoc.pdoc(*PAGES, output_directory=folder)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tools/docs", description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("build/docs"))
    folder = parser.parse_args().folder
    build(folder)
    print(f"wrote {folder / 'index.html'}")


if __name__ == "__main__":
    main()
