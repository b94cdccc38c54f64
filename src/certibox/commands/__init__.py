"""The commands, one module a group: options in a frozen dataclass, and the function that runs them.

- `training`: train;
- `certifying`: certify, predict;
- `reporting`: merge, report;
- `importing`: import-authors;
- `printing`: what they print with.

`demo`, `query_cost` and `paper.commands` hold their own; `certibox.cli` maps argv to them all.
"""
