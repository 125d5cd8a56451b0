"""One page that says what was found in a recording and how far to believe it: HTML with everything in it, or PNG."""

import base64
import datetime
import html
import importlib.metadata
import io
import pathlib
import warnings

import numpy as np

from emdl.errors import InputError
from emdl.spikes import panels, quality, tables
from emdl.text import printable

SUFFIXES = (".html", ".htm", ".png")
_DPI = 130
_MOST_UNITS = 100  # drawn one by one

# Heading, key, format, what is bad: (worse than, which way) and the tip. Percentages are of spikes.
_TABLE = (
    ("spikes", "spikes", "{:,}", None, "number of spikes"),
    ("rate, Hz", "rate_hz", "{:.2f}", None, "spikes per second"),
    ("channel", "channel", "{}", None, "where it is largest"),
    ("peak", "peak", "{:.4g}", None, "largest deflection of the mean waveform"),
    ("SNR", "snr", "{:.1f}", ("below", 4.0), "peak over the standard deviation of the noise of that channel"),
    ("presence", "presence", "{:.0%}", ("below", 0.7), quality.COLUMNS["presence"]),
    ("cut off", "amplitude_cutoff", "{:.1%}", ("above", 0.1), quality.COLUMNS["amplitude_cutoff"]),
    ("violations", "refractory_violations", "{:.1%}", ("above", 0.01), quality.COLUMNS["refractory_violations"]),
    ("contamination", "contamination", "{:.0%}", ("above", 0.1), quality.COLUMNS["contamination"]),
    ("d prime", "isolation", "{:.1f}", ("below", 4.0), quality.COLUMNS["isolation"]),
    ("nearest", "nearest", "{}", None, quality.COLUMNS["nearest"]),
    ("expected misses", "expected_misses", "{:.1%}", ("above", 0.1), quality.COLUMNS["expected_misses"]),
    ("expected false alarms", "expected_false_alarms", "{:.1%}", ("above", 0.1),
     quality.COLUMNS["expected_false_alarms"]),
)  # fmt: skip

_STYLE = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; color: #1b1b1b;
  background: #fff; max-width: 1180px; margin: 2.2em auto; padding: 0 1.4em }
h1 { font-size: 1.55em; font-weight: 650; margin: 0 0 .1em; overflow-wrap: anywhere }
h2 { font-size: 1.1em; font-weight: 650; margin: 2.4em 0 .3em; padding-bottom: .2em; border-bottom: 1px solid #ddd }
p { margin: .3em 0 .8em; color: #444; max-width: 75em }
.facts { color: #444; margin: 0 0 1em }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .86em; font-variant-numeric: tabular-nums; margin: .6em 0 }
th { text-align: right; vertical-align: bottom; font-weight: 600; color: #444; border-bottom: 1.5px solid #999;
  padding: .25em .7em; max-width: 8em }
th[title] { cursor: help }
td { text-align: right; padding: .22em .7em; border-bottom: 1px solid #eee; white-space: nowrap }
td:first-child, th:first-child { text-align: left; padding-left: .2em }
td.doubt { background: #fdeee0; color: #8a3c00; font-weight: 600 }
td a { color: inherit; text-decoration: none } td a:hover { text-decoration: underline }
.chip { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .5em }
img { width: 100%; height: auto; display: block; margin: .2em 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15em 1.2em; font-size: .9em }
dt { color: #666 } dd { margin: 0; overflow-wrap: anywhere }
ul { margin: .3em 0 .8em; padding-left: 1.2em }
footer { margin-top: 3em; color: #777; font-size: .85em; border-top: 1px solid #ddd; padding-top: .6em }
@media print { body { max-width: none; margin: 0 } img { break-inside: avoid } }
"""


def check_suffix(path):
    """Raise unless a report can be written to a file of that name.

    Parameters
    ----------
    path : Path
        Name of the file.

    Raises
    ------
    InputError
        If it ends in none of `SUFFIXES`.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"a report is .html or .png, got {path.name!r}; change the ending")


def write(path, result, *, settings=None):
    """Write the report of a sorting.

    Parameters
    ----------
    path : str or Path
        ``.html``: one page with everything in it. ``.png``: the same pictures below each other.
    result : Sorting
        From `emdl.sort`.
    settings : dict, optional
        What to list as settings, name to value.

    Raises
    ------
    InputError
        If the name ends in neither.
    """
    path = pathlib.Path(path)
    check_suffix(path)
    if path.suffix.lower() == ".png":
        path.write_bytes(_picture(result))
    else:
        path.write_text(page(result, settings=settings), encoding="utf-8")


def page(result, *, settings=None):
    """Return the report of a sorting as a page of HTML that needs no other file and no network.

    Parameters
    ----------
    result : Sorting
        From `emdl.sort`.
    settings : dict, optional
        What to list as settings, name to value.

    Returns
    -------
    str
    """
    recording, rows = result.recording, result.quality
    title = f"{_count(len(rows), 'unit')}, {_count(len(result.spikes), 'spike')} in {recording.name}"
    facts = (
        f"{_duration(recording.seconds)}, {_count(recording.n_channels, 'channel')}, {recording.fs:g} Hz, "
        f"pass band {result.model.band[0]:g} to {result.model.band[1]:g} Hz"
    )
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="facts">{_text(facts)}</p>']
    if rows:
        parts.append(_section("Units", _unit_table(result), _HOW_TO_READ))
    else:
        parts.append("<p><b>No units.</b> Nothing in the recording stands out of the noise again and again.</p>")
    doubts = tables.doubts(rows)
    if doubts:
        parts.append(_section("Doubts", "<ul>" + "".join(f"<li>{_text(d)}</li>" for d in doubts) + "</ul>"))
    parts += [_section(name, _image(figure, name), words) for name, words, figure in _overview(result)]
    units = [_image(figure, f"unit {k}", f' id="unit{k}"') for k, figure in _single(result)]
    if units:
        parts.append(_section("Unit by unit", "".join(units), _UNIT_BY_UNIT))
    parts += [_section(name, _image(figure, name), words) for name, words, figure in _foundations(result)]
    parts.append(_section("Settings and messages", _settings(result, settings)))
    version = importlib.metadata.version("emdl")
    made = f"{datetime.datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    parts.append(f"<footer>emdl {_text(version)}, {_text(made)}</footer>")
    return _PAGE.format(title=_text(title), style=_STYLE, body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_HOW_TO_READ = (
    "Numbers on an orange ground are reasons for doubt; the headings say on hover what each number is. Expected misses "
    "and false alarms come from the model: the distribution of amplitudes against the threshold, the noise, and how "
    "alike the units are. They cannot know of neurons that have no unit of their own; contamination can."
)
_UNIT_BY_UNIT = (
    "From left to right: mean waveform and standard deviation of the spikes on the channels where it is largest; "
    "autocorrelogram (grey: the 2 ms in which a unit rests); amplitudes over time; their distribution, with the normal "
    "distribution that the expected misses rest on. Dotted: what is smaller is not taken for a spike."
)


def _overview(result):
    yield (
        "The trace",
        "A stretch that shows as many units as possible. What is left should look like noise, without spikes in it.",
        panels.trace(result),
    )
    if result.quality:
        yield "When they fire", None, panels.raster(result)
    if len(result.quality) > 1:
        yield (
            "How alike they are",
            "The cosine of each two templates at their best lag, whitened: 1 for the same shape. Beside it the cross-"
            "correlograms of the most similar: a wide gap around 0 tells of one neuron in two units.",
            panels.likeness(result),
        )


def _single(result):
    fitted = quality.amplitudes(result.model, result.spikes)
    for k in range(min(result.model.n_units, _MOST_UNITS)):
        yield k, panels.unit(result, k, fitted)


def _foundations(result):
    yield "The noise", None, panels.noise(result)
    if len(result.model.history["objective"]):
        yield "Learning", None, panels.learning(result)


def _section(name, body, words=None):
    return f"<section><h2>{_text(name)}</h2>" + (f"<p>{_text(words)}</p>" if words else "") + body + "</section>"


def _unit_table(result):
    head = "".join(f'<th title="{_text(tip)}">{_text(name)}</th>' for name, *_, tip in _TABLE)
    lines = []
    for row in result.quality:
        k = row["unit"]
        name = f'<span class="chip" style="background:{panels.colour(k)}"></span>'
        name += f'<a href="#unit{k}">{k}</a>' if k < _MOST_UNITS else str(k)
        cells = "".join(_cell(row[key], form, bad) for _, key, form, bad, _ in _TABLE)
        lines.append(f"<tr><td>{name}</td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>unit</th>{head}</tr></thead><tbody>'
        + "".join(lines)
        + "</tbody></table></div>"
    )


def _cell(value, form, bad):
    if value != value or value == -1:  # NaN: there are too few spikes to say
        return "<td>&ndash;</td>"
    doubtful = bad and (value < bad[1] if bad[0] == "below" else value > bad[1])
    mark = ' class="doubt"' if doubtful else ""
    return f"<td{mark}>{_text(form.format(value))}</td>"


def _settings(result, settings):
    recording, model = result.recording, result.model
    facts = {
        "recording": recording.name,
        "samples": f"{recording.n_samples:,} of {recording.n_channels} channels, {recording.fs:g} Hz, {recording.unit}",
        "pass band": f"{model.band[0]:g} to {model.band[1]:g} Hz",
        "window": f"{1000 * model.waveforms.shape[2] / model.fs:.3g} ms",
        "iterations": str(len(model.history["objective"])),
        "gaps": f"{len(recording.gaps)}, {recording.seconds - recording.covered_s:.3f} s in all",
    }
    facts |= {name: str(value) for name, value in (settings or {}).items()}
    lines = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items())
    said = "".join(f"<li>{_text(sentence)}</li>" for sentence in model.message.split("; "))
    return f"<dl>{lines}</dl><ul>{said}</ul>"


def _image(figure, name, more=""):
    data = base64.b64encode(_png(figure)).decode("ascii")
    return f'<img{more} alt="{_text(name)}" src="data:image/png;base64,{data}">'


def _png(figure):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter of a name that the font lacks is drawn as a box
        figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()


def _picture(result):
    """Return all pictures below each other, as the bytes of a PNG."""
    from matplotlib import image

    figures = [figure for *_, figure in _overview(result)]
    figures += [figure for _, figure in _single(result)]
    figures += [figure for *_, figure in _foundations(result)]
    title = f"{_count(len(result.quality), 'unit')}, {_count(len(result.spikes), 'spike')} in {result.recording.name}"
    strips = [_title(title), *map(_png, figures)]
    arrays = [image.imread(io.BytesIO(strip))[..., :3] for strip in strips]
    wide = max(a.shape[1] for a in arrays)
    whole = np.concatenate([np.pad(a, ((0, 8), (0, wide - a.shape[1]), (0, 0)), constant_values=1) for a in arrays])
    file = io.BytesIO()
    image.imsave(file, whole, format="png")
    return file.getvalue()


def _title(text):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.5))
    figure.text(0.01, 0.5, printable(text), size=14, weight="bold", va="center", parse_math=False)
    return _png(figure)


def _text(value):
    """Return text as HTML shows it, whatever is in it."""
    return html.escape(printable(value), quote=True)


def _count(number, word):
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def _duration(seconds):
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
