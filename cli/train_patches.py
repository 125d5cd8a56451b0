"""``emdl train --task denoise --noisy``: learn a dictionary from noisy photographs alone, by EM."""

import time
from dataclasses import dataclass

import numpy as np

from .train_photographs import train

_PATIENCE = 4  # times as long as a report took, the next is due: reports take a fifth of the time


def train_patches(folder, output, *, learn, **shown):
    """Learn a dictionary from the noisy photographs of a folder and write it, with a picture of its atoms.

    Parameters
    ----------
    folder, output, **shown
        As in `train_photographs.train`. Photographs may differ in their noise level, which is estimated.
    learn : dict
        Arguments of `emdl.images.learn.fit`; those that are None are left to it. ``grey`` says whether colours are left
        out.

    Raises
    ------
    EmdlError
        If the input is bad or the output cannot be written.
    """
    given = {name: value for name, value in learn.items() if value is not None and name != "grey"}
    train(folder, output, Dictionary(given, learn["grey"], []), **shown)


@dataclass(frozen=True)
class Dictionary:
    """A dictionary learned from noisy photographs; those held out judge it by what it takes out of them."""

    given: dict
    grey: bool
    levels: list
    unit, pace = "iteration", " or more often"

    def read(self, folder):
        """Return the photographs to learn from, those to judge by, and what to say of them."""
        from emdl.images.photographs import read_noisy

        planes, held_out, self.levels[:] = read_noisy(folder, grey=self.grey)
        return planes, held_out, f", noise {min(self.levels):.3g} to {max(self.levels):.3g} of 255 (estimated)"

    def learn(self, planes, held_out, story, pause, *, checkpoint, resume, every):
        """Return the dictionary."""
        from emdl.images import learn, report

        began, due = time.monotonic(), 0.0

        def tell(now):
            nonlocal due
            start = time.monotonic()
            if start >= due or now.iteration == now.max_iter:
                judged = self._judged(now.model, held_out)
                measures = {"codes_per_patch": now.per_patch}
                reached = report.Reached(now.iteration, time.monotonic() - began, measures, judged)
                words = f"{now.per_patch:.2f} codes for a patch"
                story.tell(now.iteration / now.max_iter, reached, words, now.model)
                end = time.monotonic()
                due = end + min(every, _PATIENCE * (end - start))
            pause()

        kept = {"checkpoint": checkpoint, "checkpoint_every": every, "resume": resume}
        return learn.fit(planes, 1.0, callback=tell, **kept, **self.given)

    def _judged(self, model, held_out):
        """Return {noise level: estimated PSNR} of the photographs held out, at their mean level."""
        from emdl.images import learn

        if not held_out:
            return {}
        level = float(np.exp(np.mean(np.log(self.levels[-len(held_out) :])))) * learn.JUDGED_AT
        return {float(f"{level:.3g}"): float(20 * np.log10(255 / level)) + learn.taken_out(model, held_out, 1.0)}

    def facts(self, model):
        """Return what there is to say of the dictionary."""
        return {"n_atoms": model.n_atoms, "n_channels": model.n_channels, "sigma": self.levels}

    def headline(self, facts):
        """Return one line on what was learned, with a place for the name of the folder."""
        return (
            f"[b]{facts['n_atoms']} atoms[/b] learned from {facts['n_images']} noisy photographs in {{}} in "
            f"{facts['seconds']:.0f} s, by EM, without a clean one"
        )
