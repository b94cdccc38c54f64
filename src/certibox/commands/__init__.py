"""The commands, one module a group: options in a frozen dataclass, and the function that runs them.

- `training`: train;
- `certifying`: certify, predict;
- `reporting`: merge, report;
- `importing`: import-authors;
- `cost`: query-cost;
- `demo`: demo;
- `paper`: paper list, paper run, paper report;
- `fields`, `arguments`, `settings_files`: what options are made of, and argv to options;
- `options`, `boxes`: options that commands share;
- `models`, `loading`, `identity`, `devices`: the objects that they describe;
- `process`, `lines`, `printing`, `progress`: how a process prints, and ends.

`certibox.cli` maps argv to them all.
"""
