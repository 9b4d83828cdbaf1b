"""Numbers that were estimated from random vectors: each with an interval, its products and its method."""

import dataclasses
import json

import numpy as np

from fisher_jax._record import record, static
from fisher_jax.results import register

# Probability with which an interval holds, unless said otherwise.
CONFIDENCE = 0.95


@record
class Estimate:
    """A number and the interval in which it lies with the stated probability; of an exact number, that of rounding."""

    value: float
    lower: float
    upper: float
    standard_error: float  # of the value, from the spread of the random vectors
    products: int  # with the matrix
    confidence: float = static(default=CONFIDENCE)
    method: str = static(default="")
    info: tuple[tuple[str, str], ...] = static(default=())

    @property
    def exact(self) -> bool:
        narrow = self.upper - self.lower <= 1e-9 * abs(self.value)
        return self.standard_error == 0 and (self.confidence == 1 or narrow)

    def __float__(self) -> float:
        return float(self.value)

    def __repr__(self) -> str:
        chance = "exact to rounding" if self.exact else f"{100 * self.confidence:g} %"
        return (
            f"{self.value:.6g} in [{self.lower:.6g}, {self.upper:.6g}] ({chance}; {self.products} products, {self.method})"
        )

    def to_json(self) -> str:
        """The fields as JSON; NaN and infinity become null."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        plain = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in fields.items()}
        return json.dumps(plain | {"info": dict(self.info)}, ensure_ascii=False)


register(Estimate)
