"""Scores against a known truth: atoms, spikes, signals."""

from emdl.metrics.atoms import AtomMatch, align_atoms, atom_error
from emdl.metrics.signals import psnr, snr_db
from emdl.metrics.spikes import SpikeScores, compare_sortings, match_spikes, score_spikes

__all__ = [
    "AtomMatch",
    "SpikeScores",
    "align_atoms",
    "atom_error",
    "compare_sortings",
    "match_spikes",
    "psnr",
    "score_spikes",
    "snr_db",
]
