"""Where the settings of the suite lie: in a folder of one's own, or with the package. No torch."""

from __future__ import annotations

from pathlib import Path

from certibox.paper.suite import Suite

EXPERIMENTS = "experiments/paper"  # of a checkout; a wheel has the settings under the same name below this package
PLACES = (Path(__file__).parent / EXPERIMENTS, Path(__file__).parents[3] / EXPERIMENTS)  # of a wheel, of a checkout


def find_suite(folder: str | Path) -> Suite:
    """The suite of a folder; where the folder is the default one and has no settings, that of the package.

    So `certibox paper` works in any folder, and the rows that it measures go there, while a folder that was asked for
    must hold what was wanted.

    Args:
        folder: Folder with the YAML files of the suite.

    Raises:
        UnreadableFile: For a folder that is no suite.
    """
    if Path(folder) == Path(EXPERIMENTS) and not _is_suite(Path(folder)):
        for place in filter(_is_suite, PLACES):
            return Suite(place)
    return Suite(folder)


def _is_suite(folder: Path) -> bool:
    return (folder / "setups.yaml").is_file()
