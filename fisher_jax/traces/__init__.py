"""Traces: one file per algorithm."""

from fisher_jax.traces.api import trace as trace
from fisher_jax.traces.exact import ExactTrace as ExactTrace
from fisher_jax.traces.hutchinson import Hutchinson as Hutchinson
from fisher_jax.traces.hutchpp import HutchPP as HutchPP
from fisher_jax.traces.xnystrace import XNysTrace as XNysTrace
from fisher_jax.traces.xtrace import XTrace as XTrace
