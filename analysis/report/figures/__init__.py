"""Figures: data in, figure out. Each returns the figure and the table of all that it shows.

`note` is set small under the figure; `width` is in inches (`analysis.report.figures.style` names
those of a column and of a page). Save with `analysis.report.figures.style.save`.
"""

from analysis.report.figures.classes import loss_by_class
from analysis.report.figures.fits import coefficients, fit_with_residuals, heldout
from analysis.report.figures.losses import (
    bpb_by_domain,
    loss_against_flops,
    loss_against_tokens,
    loss_along,
    predictions_by_place,
)
from analysis.report.figures.optima import envelope, isoflop
from analysis.report.figures.plan import design_frontier
from analysis.report.figures.probes import loss_by_position, probe_accuracy
from analysis.report.figures.published import excess_parameters, savings_of_table
from analysis.report.figures.rates import loss_against_rate
from analysis.report.figures.savings import (
    ratios_of_savings,
    savings_against_loss,
    savings_against_size,
    savings_by_place,
)
from analysis.report.figures.serving import serving_against_context
from analysis.report.figures.surfaces import frontier, iso_loss
from analysis.report.figures.training import throughput_against_context, training_stability
from analysis.report.figures.tuning import response_surfaces

__all__ = [
    "bpb_by_domain",
    "coefficients",
    "design_frontier",
    "envelope",
    "excess_parameters",
    "fit_with_residuals",
    "frontier",
    "heldout",
    "iso_loss",
    "isoflop",
    "loss_against_flops",
    "loss_against_rate",
    "loss_against_tokens",
    "loss_along",
    "loss_by_class",
    "loss_by_position",
    "predictions_by_place",
    "probe_accuracy",
    "ratios_of_savings",
    "response_surfaces",
    "savings_against_loss",
    "savings_against_size",
    "savings_by_place",
    "savings_of_table",
    "serving_against_context",
    "throughput_against_context",
    "training_stability",
]
