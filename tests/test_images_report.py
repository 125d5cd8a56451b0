"""Pictures of what was denoised and of what is being learned."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from emdl.images import report


@pytest.mark.parametrize("level", [3.0, 15.4, 25.0])
def test_bars_of_whole_numbers_follow_the_curve_of_white_noise(rng, level):
    """As many whole numbers fall into each bar."""
    ax = Figure().subplots()
    report._draw_histogram(ax, np.rint(level * rng.standard_normal((300, 300, 3))), level, whole=True)
    middle = np.array([bar.get_x() + bar.get_width() / 2 for bar in ax.patches])
    height = np.array([bar.get_height() for bar in ax.patches])
    near = np.abs(middle) < 2
    want = np.exp(-(middle[near] ** 2) / 2) / np.sqrt(2 * np.pi)
    assert near.sum() >= 4
    np.testing.assert_allclose(height[near], want, rtol=0.15)


def test_the_picture_of_a_training_draws_each_report(rng):
    model = type("Model", (), {"D": rng.standard_normal((5, 1, 4, 4))})()
    reached = [report.Reached(10 * i, 1.0, {"loss": 3.0 - i, "share": 0.1 * i}, {25: 20.0 + i}) for i in (1, 2)]
    page = report.training_figure(model, reached)
    lines = {ax.get_ylabel(): ax.lines[0].get_xydata().tolist() for ax in page.axes if ax.lines}
    assert lines == {
        "dB": [[10, 21], [20, 22]],
        "loss (blue)": [[10, 2], [20, 1]],
        "share of the codes not zero (orange)": [[10, 0.1], [20, 0.2]],
    }
