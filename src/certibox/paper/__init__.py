"""The paper's tables and figures as data plus one runner: `certibox paper list | run | report`.

- `plans`: what a row is made of;
- `logbook`: what every measurement notes, of the paper or not;
- `suite`: the YAML files of a folder of `experiments/`, tables and rows;
- `dry_run`: the same plans, tiny;
- `stages`: images, box, autoencoder and defense, each done once and kept;
- `runner`: rows of the suite to measured rows;
- `measured`: measured rows on disk;
- `claims`: what the measured rows say of the paper's claims;
- `blocks`: the measured rows of a table at one scale; `plots`: the pictures of the figures;
- `gpu`: what was checked on a GPU;
- `results`: RESULTS.md and its plots, from committed rows alone.
"""
