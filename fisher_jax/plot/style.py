"""What all pictures share."""

import io

from matplotlib.figure import Figure

INK, ACCENT, QUIET = "#1f3a5f", "#c8553d", "#8a8f98"
PREDICTED = {"color": "#2f8f6b", "lw": 1.6}


class Picture(Figure):
    """A figure that a notebook shows, whether pyplot and its inline backend are loaded or not."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png")
        return out.getvalue()
