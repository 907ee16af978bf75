"""Answering cells while showing how far that is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from planner.study_answer import Answer
from planner.study_cells import Cell
from planner.study_run import Backend, Store, run_cells


def answered(cells: Sequence[Cell], store: Store, backend: Backend, *, quiet: bool) -> Iterator[Answer]:
    """Answer cells while showing how far that is; give the answers one by one.

    Raises:
        PlannerError: see :func:`planner.study_run.run_cells`.
    """
    with _progress(quiet or not cells) as shown:
        task = shown.add_task("planning", total=len(cells))

        def tell(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        passing = run_cells(cells, store, backend, tell)
    return store.answers(cells, passing)


def _progress(quiet: bool) -> Progress:
    """Show how many cells have an answer, and how long the others will take."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("cells,"),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
