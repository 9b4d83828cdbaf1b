"""The progress bar."""

import math
from typing import Any


class Bar:
    """Progress on standard error: products done, converged pairs, worst residual; or tiles done."""

    def __init__(self, quiet: bool, unit: str = "converged"):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total} " + unit),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
            redirect_stdout=False,
        )

    def __enter__(self) -> "Bar":
        self.bar.start()
        self.task = self.bar.add_task("preparing", total=None, completed=0, facts="")
        return self

    def __exit__(self, *exception: Any) -> None:
        self.bar.stop()

    def __call__(self, progress: Any) -> None:
        facts = f"{progress.products} products, worst residual {progress.worst:.0e}·λ_max"
        self.bar.update(
            self.task, description=progress.phase, total=progress.wanted, completed=progress.converged, facts=facts
        )

    def tiles(self, done: int, total: int) -> None:
        phase = "building the dual matrix" if done < total else "diagonalizing"
        self.bar.update(self.task, description=phase, total=total, completed=done)

    def training(self, state: Any) -> None:
        facts = f"epoch {state.epoch + 1}/{state.epochs}, loss {state.loss:.3g}"
        if math.isfinite(state.test_accuracy):
            facts += f", test accuracy {100 * state.test_accuracy:.1f} %"
        self.bar.update(self.task, description="training", total=state.steps, completed=state.step, facts=facts)

    def networks(self, at: str, done: int, total: int) -> None:
        self.bar.update(self.task, description=at, total=total, completed=done)

    def note(self, description: str) -> None:
        self.bar.update(self.task, description=description)
