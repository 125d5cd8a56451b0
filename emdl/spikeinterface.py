"""emdl among the sorters of SpikeInterface.

    import emdl.spikeinterface
    emdl.spikeinterface.register()
    sorting = spikeinterface.run_sorter("emdl", recording, folder="sorted")

Needs SpikeInterface (``pip install "emdl[spikeinterface]"``); `emdl.sort(recording)` does the same without a folder.
"""

import functools
import importlib.metadata

from emdl.errors import EmdlError

NAME = "emdl"
_DEFAULTS = {
    "n_units": (None, "Number of units; None finds it"),
    "band": (None, "Pass band, (low, high) in Hz; None takes 300 to 6000"),
    "window_ms": (None, "Length of a waveform, ms; None takes 3"),
    "max_iter": (15, "Most iterations of EM"),
    "seed": (0, "The same seed gives the same sorting"),
}


@functools.cache
def sorter_class():
    """Return the class by which SpikeInterface runs emdl, a `spikeinterface.sorters.BaseSorter`.

    Raises
    ------
    EmdlError
        If SpikeInterface is not installed.
    """
    try:
        from spikeinterface.core import load
        from spikeinterface.sorters import BaseSorter
    except ImportError as error:
        raise EmdlError(f"{error}; install SpikeInterface: pip install 'emdl[spikeinterface]'") from error

    class EmdlSorter(BaseSorter):
        """Units learned by expectation maximisation on sparse codes; overlaps are resolved, not thrown away."""

        sorter_name = NAME
        requires_locations = False
        gpu_capability = "not-supported"
        requires_binary_data = False
        handle_multi_segment = True
        compatible_with_parallel = {"loky": True, "multiprocessing": True, "threading": True}  # noqa: RUF012
        sorter_description = "Convolutional dictionary learning by expectation maximisation; filters and whitens itself"
        installation_mesg = 'pip install "emdl[spikeinterface]"'
        _default_params = {name: default for name, (default, _) in _DEFAULTS.items()}  # noqa: RUF012
        _params_description = {name: text for name, (_, text) in _DEFAULTS.items()}  # noqa: RUF012

        @classmethod
        def is_installed(cls):
            return True

        @classmethod
        def get_sorter_version(cls):
            return importlib.metadata.version("emdl")

        @classmethod
        def _check_apply_filter_in_params(cls, params):
            return True

        @classmethod
        def _setup_recording(cls, recording, sorter_output_folder, params, verbose):
            pass  # it is read where it is

        @classmethod
        def _run_from_folder(cls, sorter_output_folder, params, verbose):
            from emdl.spikes import recordings, sorting

            recording = recordings.from_object(cls.load_recording_from_folder(sorter_output_folder.parent))
            learn = {name: value for name, value in params.items() if name in _DEFAULTS and value is not None}
            learn["rng"] = learn.pop("seed", 0)
            result = sorting.sort_recording(recording, **learn)
            result.to_spikeinterface().save(folder=sorter_output_folder / "sorting")
            result.model.save(sorter_output_folder / "model.h5")

        @classmethod
        def _get_result_from_folder(cls, sorter_output_folder):
            return load(sorter_output_folder / "sorting")

    return EmdlSorter


def register():
    """Put emdl among the sorters of SpikeInterface, once per process; doing it again changes nothing.

    Returns
    -------
    type
        The class of the sorter.

    Raises
    ------
    EmdlError
        If SpikeInterface is not installed.
    """
    made = sorter_class()
    from spikeinterface.sorters import sorterlist

    sorterlist.sorter_dict[NAME] = made
    if made not in sorterlist.sorter_full_list:
        sorterlist.sorter_full_list.append(made)
    return made
