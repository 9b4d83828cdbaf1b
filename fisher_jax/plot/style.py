"""What all pictures share."""

INK, ACCENT, QUIET = "#1f3a5f", "#c8553d", "#8a8f98"
PREDICTED = {"color": "#2f8f6b", "lw": 1.6}
