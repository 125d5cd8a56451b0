"""The algebra of the model, as laws that hold for whatever shapes and values hypothesis finds."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import assert_adjoint, smooth_atoms

from emdl import analyze, em_fit, encode, lambda_max, objective, simulate, synthesize
from emdl.events import Layout, padded
from emdl.gradients import backward
from emdl.unrolled import unroll

laws = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def problems(draw):
    """Return signals, dictionary, codes and stride; all sizes are drawn, and nothing fits by accident."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, K, C = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    axes = draw(st.integers(1, 2))
    s = tuple(draw(st.integers(1, 6)) for _ in range(axes))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(axes))
    P = tuple(draw(st.integers(1, 9)) for _ in range(axes))
    D = rng.standard_normal((K, C, *s))
    D /= np.sqrt((D**2).sum(axis=tuple(range(1, D.ndim)), keepdims=True))
    S = tuple((p - 1) * t + a for p, t, a in zip(P, stride, s, strict=True))
    z = rng.standard_normal((n, K, *P)) * (rng.random((n, K, *P)) < 0.4)
    return rng.standard_normal((n, C, *S)), D, z, stride


def assert_near(got, wanted, rtol=1e-12):
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-300)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * scale)


def coded(y, D, stride, lmbd=0.3, sigma=1.0, **options):
    return encode(y, D, lmbd, sigma, stride=stride, tol=1e-10, max_iter=20_000, **options)


@laws
@given(problems())
def test_analysis_is_the_adjoint_of_synthesis(problem):
    y, D, z, stride = problem
    assert_adjoint(lambda x: synthesize(x, D, stride=stride), lambda r: analyze(r, D, stride=stride), z, y, rtol=1e-11)


@laws
@given(problems(), st.floats(-3, 3), st.floats(-3, 3))
def test_synthesis_and_analysis_are_linear_in_each_argument(problem, a, b):
    y, D, z, stride = problem
    rng = np.random.default_rng(1)
    y2, D2, z2 = (rng.standard_normal(x.shape) for x in (y, D, z))
    made = synthesize(z, D, stride=stride)
    assert_near(synthesize(a * z + b * z2, D, stride=stride), a * made + b * synthesize(z2, D, stride=stride), 1e-11)
    assert_near(synthesize(z, a * D + b * D2, stride=stride), a * made + b * synthesize(z, D2, stride=stride), 1e-11)
    seen = analyze(y, D, stride=stride)
    assert_near(analyze(a * y + b * y2, D, stride=stride), a * seen + b * analyze(y2, D, stride=stride), 1e-11)
    assert_near(analyze(y, a * D + b * D2, stride=stride), a * seen + b * analyze(y, D2, stride=stride), 1e-11)


def moved(x, before, after):
    """Return x with zeros before and after along each axis of its signals or codes."""
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])


@laws
@given(problems(), st.integers(0, 3), st.integers(0, 3))
def test_what_is_shifted_gives_what_is_shifted(problem, a, b):
    y, D, z, stride = problem
    codes = [(a, b)[:1] * len(stride), (b, a)[:1] * len(stride)]
    samples = [tuple(m * t for m, t in zip(c, stride, strict=True)) for c in codes]
    made = synthesize(z, D, stride=stride)
    assert_near(synthesize(moved(z, *codes), D, stride=stride), moved(made, *samples))
    inner = tuple(slice(m, m + p) for m, p in zip(codes[0], z.shape[2:], strict=True))
    assert_near(analyze(moved(y, *samples), D, stride=stride)[(..., *inner)], analyze(y, D, stride=stride))


@laws
@given(problems(), st.randoms(use_true_random=False))
def test_order_and_sign_of_atoms_and_channels_are_names(problem, random):
    y, D, z, stride = problem
    atoms, channels = (np.array(random.sample(range(m), m)) for m in D.shape[:2])
    sign = np.array([random.choice((-1, 1)) for _ in atoms], float)
    column = sign[atoms].reshape(-1, *[1] * (D.ndim - 2))
    other = (column[:, None] * D[atoms])[:, channels]
    lmbd = 0.2 + 0.1 * np.arange(len(D))
    assert_near(synthesize(column * z[:, atoms], other, stride=stride), synthesize(z, D, stride=stride)[:, channels])
    assert_near(analyze(y[:, channels], other, stride=stride), column * analyze(y, D, stride=stride)[:, atoms])
    assert lambda_max(y[:, channels], other, stride=stride) == pytest.approx(lambda_max(y, D, stride=stride), rel=1e-12)
    one, two = coded(y, D, stride, lmbd), coded(y[:, channels], other, stride, lmbd[atoms])
    values = [
        objective(y, one, D, lmbd, stride=stride),
        objective(y[:, channels], two, other, lmbd[atoms], stride=stride),
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-9)
    assert_near(synthesize(two, other, stride=stride), synthesize(one, D, stride=stride)[:, channels], 1e-4)


@laws
@given(problems())
def test_the_negative_signal_has_the_negative_codes(problem):
    y, D, _, stride = problem
    np.testing.assert_array_equal(coded(-y, D, stride), -coded(y, D, stride))
    np.testing.assert_array_equal(coded(y, -D, stride, positive=True), coded(-y, D, stride, positive=True))


@laws
@given(problems(), st.integers(-200, 200))
def test_units_do_not_matter_to_the_last_bit_for_powers_of_two(problem, power):
    y, D, _, stride = problem
    a = 2.0**power
    wanted = coded(y, D, stride, 0.3, 1.5)
    np.testing.assert_array_equal(coded(a * y, D, stride, 0.3 / a, 1.5 * a), a * wanted)
    small = np.float32(2.0 ** (power // 4))
    single = y.astype(np.float32)
    wanted = encode(single, D, 0.3, 1.5, stride=stride)
    np.testing.assert_array_equal(
        encode(small * single, D, 0.3 / float(small), 1.5 * float(small), stride=stride), small * wanted
    )


@laws
@given(problems(), st.floats(1e-30, 1e30))
def test_the_objective_has_no_unit(problem, a):
    y, D, z, stride = problem
    value = objective(y, z, D, 0.7, 1.3, stride=stride)
    assert objective(a * y, a * z, D, 0.7 / a, 1.3 * a, stride=stride) == pytest.approx(value, rel=1e-12)


@laws
@given(problems(), st.data())
def test_windows_that_overlap_by_an_atom_less_one_sample_see_what_the_whole_signal_shows(problem, data):
    y, D, z, stride = problem
    whole, made = analyze(y, D, stride=stride), synthesize(z, D, stride=stride)
    P, s = z.shape[2], D.shape[2]
    cut = data.draw(st.integers(0, P - 1))
    parts = [(0, cut), (cut, P)]
    added = np.zeros_like(made)
    for first, end in parts:
        if end > first:
            window = slice(first * stride[0], (end - 1) * stride[0] + s)
            np.testing.assert_array_equal(analyze(y[:, :, window], D, stride=stride), whole[:, :, first:end])
            added[:, :, window] += synthesize(z[:, :, first:end], D, stride=stride)
    assert_near(added, made)


@laws
@given(problems())
def test_codes_of_several_signals_are_those_of_each(problem):
    y, D, _, stride = problem
    together = coded(y, D, stride)
    for i, signal in enumerate(y):
        alone = coded(signal[None], D, stride)
        values = [objective(signal[None], z, D, 0.3, stride=stride) for z in (alone, together[i : i + 1])]
        assert values[0] == pytest.approx(values[1], rel=1e-9)


@laws
@given(problems(), st.floats(0.1, 3))
def test_layers_have_no_unit_and_the_gradient_of_y_is_linear(problem, theta):
    y, D, z, stride = problem
    a, step = 2.0**60, 0.1
    one, two = (unroll(c * y, D, c * theta * step, step, 4, stride=stride) for c in (1.0, a))
    np.testing.assert_array_equal(two.z, a * one.z)
    g = np.random.default_rng(2).standard_normal(z.shape)
    assert_near(backward(one, 3 * g).y, 3 * backward(one, g).y, 1e-11)


@pytest.fixture(scope="module")
def simulated():
    rng = np.random.default_rng(7)
    return simulate.convolutional(3, 400, smooth_atoms(2, 2, 11, rng), density=0.02, snr_db=15, positive=True, rng=rng)


@pytest.mark.parametrize("power", [100, 1, -1, -100])
@pytest.mark.parametrize("options", [{}, {"learn_sigma": True}, {"lmbd_rule": "paper"}, {"m_step": "decoder"}], ids=str)
def test_a_fit_has_no_unit(power, options, simulated):
    """A power of two changes no bit of a mantissa: the same atoms, sigma times a, lambda over a, to the last bit."""
    a = 2.0**power
    arguments = {"positive": True, "rng": 0, "max_iter": 5, "n_layers": 5, **options}
    one, two = (em_fit(c * simulated.y, 2, 11, **arguments) for c in (1.0, a))
    np.testing.assert_array_equal(two.model.D, one.model.D)
    np.testing.assert_array_equal(two.model.lmbd, one.model.lmbd / a)
    assert two.model.sigma == a * one.model.sigma
    assert two.message == one.message


@pytest.mark.parametrize("a", [1e30, 3.7, 1e-30])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_fit_has_no_unit_within_rounding(a, dtype, simulated):
    y = (a * simulated.y).astype(dtype)
    one, two = (em_fit(x, 2, 11, positive=True, rng=0, max_iter=8) for x in (simulated.y.astype(dtype), y))
    np.testing.assert_allclose(two.model.D, one.model.D, atol=2e-3)
    np.testing.assert_allclose(two.model.lmbd * a, one.model.lmbd, rtol=0.02)
    np.testing.assert_allclose(two.model.sigma / a, one.model.sigma, rtol=1e-3)


def test_padding_is_undone_by_cropping():
    layout = Layout((5,), (2,), False)
    x = np.arange(14.0).reshape(2, 1, 7)
    assert layout.margin == (4,)
    np.testing.assert_array_equal(padded(x, layout.margin)[:, :, 4:-4], x)
