"""Spectral densities: the whole spectrum at once, blurred, from products with random vectors; one file per algorithm."""

from fisher_jax.density.api import density as density
from fisher_jax.density.base import Density as Density
from fisher_jax.density.kpm import KPM as KPM
from fisher_jax.density.slq import SLQ as SLQ
