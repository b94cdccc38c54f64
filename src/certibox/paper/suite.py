"""The suite as data: tables, their rows at every scale, what the paper reports, and what is claimed.

A folder such as `experiments/paper` holds one YAML file a table and `setups.yaml` with the settings that tables share;
`datasets.yaml` lies there or, for all suites, in the folder above. A row says only how it differs from its setup:

    setups.yaml     mnist-cpu: {data: {...}, box: {...}, autoencoder: {...}, defense: {...}, certify: {...}}
    table2.yaml     scales: {cpu: mnist-cpu, ...}
                    rows:
                    - name: ZO-AE-DS (RGE, q=20)
                      reported: {"0.00": 42.72, ...}
                      set: {defense: {method: ZO-AE-DS, estimator: {name: rge, q: 20}}}      at every scale
                      cpu: {...}                                                             at this one
                      only: [cpu]                                                            at no other
                    - like: table2 / ZO-AE-DS (RGE, q=20)                                    the row of another table

Mappings merge key by key, all else is replaced; so are a network with its arguments by one of another name, and what a
row reports by what a row that is `like` it reports.
Nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from certibox.errors import InvalidInput, UnreadableFile, did_you_mean, one_of
from certibox.paper.plans import Plan, parse

NAMES = (
    *("table1", "table2", "table3", "table4", "table5"),
    *("tableA1", "tableA2", "tableA3", "tableA4", "figure4", "figure5"),
)
_TABLE_KEYS, _ALSO_IN_A_TABLE = {"title", "scales", "rows"}, {"claims", "notes", "picture"}
_DATASET_KEYS = {"reader", "splits", "image_column", "label_column"}
_ROW_KEYS = {"name", "like", "reported", "set", "note", "only"}


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    name: str
    """Name of the row, unique in its table."""
    reported: Mapping[str, Any]
    """What the paper reports, by column: percent, or [RMSE, SSIM]. Empty for rows that the paper lacks."""
    plans: Mapping[str, Plan]
    """Plans by scale; a row may lack some scales."""
    note: str | None = None
    """Remark that stands under the name."""


@dataclass(frozen=True)
class Claim:
    """Something that the paper claims, put so that measured rows can contradict it."""

    text: str
    """Claim in words."""
    better: str
    """Name of the row that is claimed to be better."""
    worse: str
    """Name of the row that it is compared with."""
    at: float
    """Multiple of sigma (classification) or norm of the attack (reconstruction) at which the two are compared."""
    margin: float = 0.0
    """Advantage that `better` is claimed to exceed, as a share of images or in RMSE; negative for "comes near"."""
    threat: str = "adaptive"
    """Attacker of a reconstruction: `transfer` or `adaptive`."""


@dataclass(frozen=True)
class Table:
    """One table or figure of the paper."""

    name: str
    """Name of the table and of its file, such as `table2`."""
    title: str
    """Title as a reader sees it: what the paper calls it, a colon, what it is about."""
    rows: tuple[Row, ...]
    """Rows in the order of the table."""
    claims: tuple[Claim, ...]
    """Claims about the rows."""
    scales: Mapping[str, str]
    """Names of the setups by scale, in order of size."""
    seeds: Mapping[str, tuple[int, ...]]
    """Seeds by scale."""
    notes: tuple[str, ...]
    """Remarks that stand below the table."""
    picture: str | None = None
    """Kind of the picture of a figure: `curves` or `reconstructions`."""

    def row(self, name: str) -> Row:
        """One row.

        Args:
            name: Name of the row.

        Raises:
            InvalidInput: For an unknown name; it lists those there are.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise InvalidInput(f"{self.name} has no row {name!r}; wanted {one_of(name, [row.name for row in self.rows])}")


class Suite:
    """The experiments of a folder, read when they are asked for.

    Args:
        folder: Folder with `setups.yaml` and a file for each table.
        names: Names of the tables, by default those of the paper.

    Raises:
        UnreadableFile: For a folder without `setups.yaml`.
    """

    def __init__(self, folder: str | Path, names: tuple[str, ...] = NAMES) -> None:
        self.folder, self.names = Path(folder), names
        self._files: dict[str, dict[str, Any]] = {}
        if not (self.folder / "setups.yaml").is_file():
            raise UnreadableFile(f"{folder} holds no setups.yaml; wanted the folder of experiments: --experiments DIR")

    @cached_property
    def setups(self) -> dict[str, Any]:
        """Shared settings by name, with `base` resolved."""
        raw = self._read("setups")
        return {name: _with_base(name, raw, ()) for name in raw}

    @cached_property
    def datasets(self) -> dict[str, dict[str, Any]]:
        """Where images come from, by name."""
        known = self._read("datasets")
        for name, entry in known.items():
            _check_keys(entry, {"folders", "hub"}, _DATASET_KEYS, f"datasets / {name}")
        return known

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables and figures, in the order of the paper."""
        return {name: self.table(name) for name in self.names}

    def table(self, name: str) -> Table:
        """One table, with every row resolved at every scale.

        Args:
            name: Name of the table, such as `table2`.

        Raises:
            InvalidInput: For an unknown table, or settings that make no plan; it names the place.
            UnreadableFile: For a file that is missing or is no YAML.
        """
        if name not in self.names:
            raise InvalidInput(f"there is no experiment {name!r}; wanted {one_of(name, self.names)}")
        raw = self._read(name)
        _check_keys(raw, _TABLE_KEYS, _ALSO_IN_A_TABLE, name)
        scales = raw["scales"]
        for setup in scales.values():
            if setup not in self.setups:
                raise InvalidInput(f"{name}: there is no setup {setup!r}; wanted {one_of(setup, self.setups)}")
            _check_keys(self.setups[setup], {"seeds"}, {item.name for item in fields(Plan)}, f"setups / {setup}")
            if not self.setups[setup]["seeds"]:
                raise InvalidInput(f"setups / {setup} has no seeds; wanted at least one, such as [0]")
        rows = tuple(self._row(entry, scales, name) for entry in raw["rows"])
        names = [row.name for row in rows]
        if len(set(names)) < len(names):
            raise InvalidInput(f"{name} has two rows of one name among {', '.join(names)}; rename one")
        return Table(
            name=name,
            title=raw["title"],
            rows=rows,
            claims=tuple(parse(Claim, entry, f"{name}: claim") for entry in raw.get("claims", [])),
            scales=scales,
            seeds={scale: tuple(self.setups[setup]["seeds"]) for scale, setup in scales.items()},
            notes=tuple(raw.get("notes", [])),
            picture=raw.get("picture"),
        )

    def _row(self, entry: dict[str, Any], scales: Mapping[str, str], place: str) -> Row:
        entry = self._unlike(entry, place)
        place = f"{place} / {entry.get('name', 'a row')}"
        _check_keys(entry, {"name"}, _ROW_KEYS | scales.keys(), place)
        only = entry.get("only", scales)
        for scale in only:
            if scale not in scales:
                raise InvalidInput(f"{place}: only has scale {scale!r}; wanted {one_of(scale, scales)}")
        plans = {}
        for scale, setup in scales.items():
            if scale not in only:
                continue
            shared = {key: value for key, value in self.setups[setup].items() if key != "seeds"}
            values = merged(merged(shared, entry.get("set", {})), entry.get(scale, {}))
            plans[scale] = parse(Plan, values, f"{place} / {scale}")
        reported = entry.get("reported", {})
        strange = [key for key, value in reported.items() if not _is_result(value)]
        if strange:
            raise InvalidInput(f"{place}: reported {strange[0]} is {reported[strange[0]]!r}; wanted a number or a pair")
        return Row(entry["name"], reported, plans, entry.get("note"))

    def _unlike(self, entry: dict[str, Any], place: str) -> dict[str, Any]:
        """A row that is `like` another, written out; its own keys stand, and what it reports is its own alone."""
        if "like" not in entry:
            return entry
        table, _, name = entry["like"].partition(" / ")
        if table not in self.names:
            raise InvalidInput(f"{place}: there is no table of {entry['like']!r}; wanted 'table / name' of a row")
        found = [other for other in self._read(table)["rows"] if other.get("name") == name]
        if not found:
            raise InvalidInput(f"{place}: there is no row {entry['like']!r}; wanted 'table / name' of a row")
        own = {key: value for key, value in entry.items() if key != "like"}
        taken = self._unlike(found[0], table)
        return merged({key: value for key, value in taken.items() if key != "reported" or key not in own}, own)

    def _read(self, name: str) -> dict[str, Any]:
        """One file, parsed once: rows that are `like` others ask for it often."""
        if name not in self._files:
            self._files[name] = self._parsed(self._path(name))
        return self._files[name]

    def _path(self, name: str) -> Path:
        """Where a file is; the data sets may be those of the folder above, which suites share."""
        own = self.folder / f"{name}.yaml"
        shared = self.folder.absolute().parent / own.name
        return shared if name == "datasets" and shared.exists() and not own.exists() else own

    def _parsed(self, path: Path) -> dict[str, Any]:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UnreadableFile(f"{path}: {error.strerror}; check --experiments") from error
        except yaml.YAMLError as error:
            raise UnreadableFile(f"{path} is no YAML: {' '.join(str(error).split())}; mend it") from error
        if not isinstance(values, dict):
            raise UnreadableFile(f"{path} holds {type(values).__name__}; wanted a mapping")
        return values


def merged(base: Any, over: Any) -> Any:
    """`base` with `over` laid on it: mappings merge key by key, all else is replaced.

    So is a mapping with arguments by one of another name: the arguments of one network mean nothing to another.

    Args:
        base: Values below.
        over: Values that win.
    """
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "arguments" in base and over.get("name", base.get("name")) != base.get("name"):
        return over
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in over.items()}}


def _with_base(name: str, raw: dict[str, Any], above: tuple[str, ...]) -> dict[str, Any]:
    """A setup with the setup that it builds on written out. above: the setups that build on it."""
    if name in above:
        raise InvalidInput(f"setups: {name!r} builds on itself, by way of {', '.join(above)}; give one another base")
    if not isinstance(raw.get(name), dict):
        known = ", ".join(key for key, value in raw.items() if isinstance(value, dict))
        raise InvalidInput(f"setups: {name!r} is no mapping of settings; wanted one, or as base one of {known}")
    values = dict(raw[name])
    base = values.pop("base", None)
    return values if base is None else merged(_with_base(base, raw, (*above, name)), values)


def _is_result(value: Any) -> bool:
    """Whether a value can be what the paper reports in a cell: percent, or RMSE and SSIM."""
    parts = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(isinstance(part, int | float) and not isinstance(part, bool) for part in parts)


def _check_keys(values: Mapping[str, Any], required: Set[str], optional: Set[str], place: str) -> None:
    """Raise `InvalidInput`, naming the key, unless `values` has all required keys and none that is not known."""
    wrong = [f"has no {key!r}" for key in sorted(required - values.keys())]
    wrong += [f"has {key!r}" for key in values if key not in required | optional]
    if wrong:
        known = sorted(required | optional)
        meant = did_you_mean(next((key for key in values if key not in known), ""), known)
        raise InvalidInput(f"{place} {wrong[0]}; wanted {', '.join(known)}{meant}")
