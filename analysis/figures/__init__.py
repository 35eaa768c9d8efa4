"""Figures: data in, figure out. Each returns the figure and the table of all that it shows.

`note` is set small under the figure; `width` is in inches (`analysis.figures.style` names those of
a column and of a page). Save with `analysis.figures.style.save`.
"""

from analysis.figures.fits import coefficients, fit_with_residuals
from analysis.figures.losses import bpb_by_domain, loss_against_flops, loss_against_tokens
from analysis.figures.plan import design_frontier
from analysis.figures.probes import loss_by_position, probe_accuracy
from analysis.figures.savings import savings_against_loss, savings_against_size
from analysis.figures.surfaces import frontier, iso_loss
from analysis.figures.training import throughput_against_context, training_stability

__all__ = [
    "bpb_by_domain",
    "coefficients",
    "design_frontier",
    "fit_with_residuals",
    "frontier",
    "iso_loss",
    "loss_against_flops",
    "loss_against_tokens",
    "loss_by_position",
    "probe_accuracy",
    "savings_against_loss",
    "savings_against_size",
    "throughput_against_context",
    "training_stability",
]
