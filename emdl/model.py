"""What a fit leaves behind, in memory and on disk."""

from dataclasses import dataclass, field

import numpy as np

from emdl.backend import array_module, as_dictionary, as_stride, check_flag, check_number
from emdl.encoder import encode
from emdl.errors import FileFormatError
from emdl.ops import as_rates, synthesize
from emdl.storage import new_file, old_file, read_array

FORMAT = 1  # of the file; rises when a reader of the old one would misread the new one


@dataclass(frozen=True)
class Model:
    """A dictionary with its rates and noise level.

    Attributes
    ----------
    D : array (K, C, *s)
        Atoms, unit l2 norm over channels and support.
    lmbd : array (K,)
        Laplace rates, 1 / data unit.
    sigma : float
        Noise standard deviation, data unit.
    positive : bool
        Whether codes are non-negative.
    stride : tuple of int
        Distance of neighbouring code positions along each axis, samples.
    attributes : dict
        Names and values (numbers, strings, arrays) that travel with the model into its file.
    """

    D: np.ndarray
    lmbd: np.ndarray
    sigma: float
    positive: bool = False
    stride: tuple = ()
    attributes: dict = field(default_factory=dict)

    def __post_init__(self):
        D = as_dictionary(self.D)
        rates = as_rates(self.lmbd, D)
        object.__setattr__(self, "D", D)
        object.__setattr__(self, "lmbd", rates)
        object.__setattr__(self, "sigma", check_number(self.sigma, "sigma", 0, strict=True))
        object.__setattr__(self, "positive", check_flag(self.positive, "positive"))
        object.__setattr__(self, "stride", as_stride(self.stride or 1, D.ndim - 2))

    @property
    def n_atoms(self):
        """Number of atoms K."""
        return self.D.shape[0]

    @property
    def atom_shape(self):
        """Samples of an atom along each axis."""
        return self.D.shape[2:]

    def encode(self, y, *, tol=1e-4, sparse=False):
        """Return the codes of signals under this model, certified.

        Parameters
        ----------
        y : array S, (n, *S) or (n, C, *S)
            Signals, in the unit of the data that the model was learned from.
        tol : float
            Relative duality gap.
        sparse : bool
            Return `emdl.codes.SparseCodes` instead of an array.

        Returns
        -------
        array (n, K, *P)
            Codes, data unit.

        Raises
        ------
        InputError
            If the signals do not fit the atoms.
        """
        return encode(
            y, self.D, self.lmbd, self.sigma, tol=tol, positive=self.positive, stride=self.stride, sparse=sparse
        )

    def reconstruct(self, y, *, tol=1e-4):
        """Return what the model sees in signals, D z with z = encode(y): the signals without noise.

        Parameters
        ----------
        y : array S, (n, *S) or (n, C, *S)
            Signals.
        tol : float
            Relative duality gap of the codes.

        Returns
        -------
        array (n, C, *S)

        Raises
        ------
        InputError
            If the signals do not fit the atoms.
        """
        return synthesize(self.encode(y, tol=tol), self.D, stride=self.stride)

    def save(self, path):
        """Write the model to an HDF5 file, whole or not at all.

        Parameters
        ----------
        path : path
            A file of that name is replaced once the new one is complete.

        Raises
        ------
        FileFormatError
            If the folder cannot be written.
        """
        with new_file(path) as file:
            write_model(file, self)


def load(path):
    """Return a model read from a file that `Model.save` wrote.

    Parameters
    ----------
    path : path
        HDF5 file.

    Returns
    -------
    Model

    Raises
    ------
    FileFormatError
        If the file is missing, damaged, not a model, or of a newer format.

    Examples
    --------
    >>> import numpy as np, pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.h5"
    >>> Model(np.array([[[0.6, 0.8]]]), lmbd=2.0, sigma=0.5).save(path)
    >>> load(path).sigma
    0.5
    """
    with old_file(path) as file:
        return read_model(file)


def write_model(group, model):
    """Write a model into an HDF5 group.

    Parameters
    ----------
    group : h5py.Group
        Empty.
    model : Model
        What to write.
    """
    if array_module(model.D) is not np:
        model = Model(model.D.get(), model.lmbd.get(), model.sigma, model.positive, model.stride, model.attributes)
    group.attrs["emdl_format"] = FORMAT
    group.create_dataset("D", data=model.D)
    group.create_dataset("lmbd", data=model.lmbd)
    group.create_dataset("sigma", data=model.sigma)
    group.attrs["positive"], group.attrs["stride"] = model.positive, model.stride
    held = group.create_group("attributes")
    for name, value in model.attributes.items():
        if isinstance(value, str):
            held.attrs[name] = value
        else:
            held.create_dataset(name, data=value)


def read_model(group):
    """Return the model in an HDF5 group.

    Parameters
    ----------
    group : h5py.Group
        Written by `write_model`.

    Returns
    -------
    Model

    Raises
    ------
    FileFormatError
        If something is missing, or the format is newer than this program.
    """
    version = group.attrs.get("emdl_format")
    if version is None:
        raise FileFormatError("this HDF5 file holds no emdl model; models are written by `emdl train` and Model.save")
    if int(version) > FORMAT:
        raise FileFormatError(
            f"the model has format {int(version)}, this emdl reads up to {FORMAT}; install a newer emdl"
        )
    held = group["attributes"]
    arrays = {name: read_array(held, name) for name in held}
    attributes = {name: value.item() if value.ndim == 0 else value for name, value in arrays.items()}
    attributes |= {name: str(value) for name, value in held.attrs.items()}
    return Model(
        read_array(group, "D"),
        read_array(group, "lmbd"),
        float(read_array(group, "sigma")),
        bool(group.attrs["positive"]),
        tuple(int(t) for t in np.atleast_1d(group.attrs["stride"])),
        attributes,
    )
