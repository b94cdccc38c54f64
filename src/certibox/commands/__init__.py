"""The commands, one module a group: options in a frozen dataclass, and the function that runs them.

- `training`: train;
- `certifying`: certify, predict;
- `reporting`: merge, report;
- `importing`: import-authors;
- `cost`: query-cost;
- `demo`: demo;
- `paper`: paper list, paper run, paper report;
- `fields`, `arguments`: what options are made of, and argv to options;
- `options`, `models`: options that commands share, and the objects that they describe;
- `printing`, `progress`: what they print with.

`certibox.cli` maps argv to them all.
"""
