"""``emdl train --task denoise``: learn a denoising network from photographs, and show how it forms."""

from dataclasses import dataclass

from emdl.backend import check_number

from . import workers
from .train_photographs import DEFAULT_OUTPUT as DEFAULT_OUTPUT
from .train_photographs import train

DEFAULT_MINUTES = 60.0


def train_denoiser(folder, output, *, minutes, learn, dask=None, **shown):
    """Learn a network from the photographs of a folder and write it, with a picture of its atoms.

    Parameters
    ----------
    folder, output, **shown
        As in `train_photographs.train`.
    minutes : float
        Length of the training.
    learn : dict
        Arguments of `emdl.images.training.train`; those that are None are left to it. ``grey`` says whether colours
        are left out.
    dask : str, optional
        Whose workers compute the gradients, see `workers.of`.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    given = {name: value for name, value in learn.items() if value is not None and name != "grey"}
    train(folder, output, Network(minutes, given, learn["grey"], dask, shown["quiet"]), **shown)


@dataclass(frozen=True)
class Network:
    """A network learned from clean photographs: noise is added to them."""

    minutes: float
    given: dict
    grey: bool
    dask: str | None
    quiet: bool
    unit, pace = "step", ""

    def read(self, folder):
        """Return the photographs to learn from, those to judge by, and what to say of them."""
        from emdl.images.photographs import read_apart

        return *read_apart(folder, grey=self.grey), ""

    def learn(self, photographs, held_out, story, pause, **kept):
        """Return the network."""
        from emdl.images import report, training

        def tell(now):
            measures = {"loss": now.loss, "share": now.share}
            words = f"loss {now.loss:.4g}, {now.share:.1%} of the codes not zero"
            story.tell(now.done, report.Reached(now.step, now.seconds, measures, now.psnr), words, now.network)

        seconds = 60 * check_number(self.minutes, "--minutes", 0, strict=True)
        with workers.of(self.dask, quiet=self.quiet) as client:
            return training.train(
                photographs, validation=held_out, callback=tell, pause=pause, seconds=seconds, client=client,
                **kept, **self.given,
            )  # fmt: skip

    def facts(self, network):
        """Return what there is to say of the network."""
        return {"n_layers": network.n_layers, "n_atoms": network.n_atoms, "n_channels": network.n_channels}

    def headline(self, facts):
        """Return one line on what was learned, with a place for the name of the folder."""
        size = f"{facts['n_layers']} layers of {facts['n_atoms']} atoms"
        return f"[b]{size}[/b] learned from {{}} in {facts['seconds']:.0f} s"
