"""Rules for the Laplace rates lmbd and the noise level sigma, and the E-step that follows them."""

from emdl.rates.estep import DEFAULT_RULE, RULES, EStep, e_step
from emdl.rates.laplace import Prior, lmbd_gradient, start_lmbd, step_lmbd, update_lmbd
from emdl.rates.noise import estimate_sigma, residual_sigma
from emdl.rates.risk import Search, Sums, log_step, measure

__all__ = [
    "DEFAULT_RULE",
    "RULES",
    "EStep",
    "Prior",
    "Search",
    "Sums",
    "e_step",
    "estimate_sigma",
    "lmbd_gradient",
    "log_step",
    "measure",
    "residual_sigma",
    "start_lmbd",
    "step_lmbd",
    "update_lmbd",
]
