"""The paper's tables and figures as data plus one runner: `certibox paper list | run | report`.

- `plans`: what a row is made of;
- `logbook`: what every measurement notes, of the paper or not;
- `suite`: the YAML files of the experiments, tables and rows; `shipped`: where these files lie;
- `dry_run`: the same plans, tiny;
- `stages`: images, box, autoencoder and defense, each done once and kept;
- `runner`: rows of the suite to measured rows;
- `measured`: measured rows on disk;
- `claims`: what the measured rows say of the paper's claims;
- `blocks`: the measured rows of a table at one scale; `plots`: the pictures of the figures;
- `gpu`: what was checked on a GPU, and its page;
- `results`: all pages and plots, from measured rows alone; `summary`: RESULTS.md; `table_page`: the page of a table,
  with its `provenance`; `cells`, `words`: numbers and explanations on the pages.
"""
