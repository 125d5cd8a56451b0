"""Signals and recordings with known truth."""

from emdl.simulate.neurons import waveforms
from emdl.simulate.recording import SimulatedRecording, tetrode
from emdl.simulate.signals import Simulated, convolutional

__all__ = ["Simulated", "SimulatedRecording", "convolutional", "tetrode", "waveforms"]
