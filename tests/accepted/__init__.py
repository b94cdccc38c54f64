"""What is accepted of models and data, as tables, which docs/models-and-data.md shows and tests/test_accepted.py tries.

Every table has a function that makes what stands in a row and tries what stands above a column. A cell begins with
"yes" where that answers as the linear model of `linear` does, and with "no: " and a reason where it is refused in one
line. Nothing but the cells is needed to print a table: what builds models is imported where it is used.
"""

from __future__ import annotations

from accepted.table import Table


def tables() -> dict[str, Table]:
    """All tables, by the name that their place in the docs has."""
    from accepted import answers, data, identities, inputs, models

    return {
        f"accepted-{module.__name__.split('.')[1]}": module.TABLE
        for module in (models, inputs, answers, data, identities)
    }


def printed(table: Table) -> str:
    """Markdown of a table."""
    return table.markdown
