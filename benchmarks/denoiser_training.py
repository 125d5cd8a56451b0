"""Train the denoising network that comes with emdl, from a folder of photographs.

    python benchmarks/denoiser_training.py PHOTOGRAPHS --seconds 4000 --validation FOLDER --out denoiser.h5

It resumes from its checkpoint, ``<out>.state``, when it is called again with the same arguments. The photographs that
the bundled file was trained on are named in docs/denoising.md.
"""

import argparse
import pathlib
import time

import numpy as np

from emdl.images.network import Network
from emdl.images.photographs import read_photographs
from emdl.images.training import train, validate


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("denoiser.h5"))
    parser.add_argument("--validation", type=pathlib.Path, help="folder of photographs that are not trained on")
    parser.add_argument("--colour", action="store_true")
    parser.add_argument("--start", type=pathlib.Path, help="network to go on from")
    parser.add_argument("--every", type=float, default=180.0)
    for name, default in (("atoms", 128), ("layers", 12), ("stride", 2), ("batch", 8), ("crop", 78), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--sigma", type=float, nargs=2, default=(5.0, 75.0))
    parser.add_argument("--validate", type=int, default=24, help="how many of the validation photographs to use")
    parser.add_argument("--tied", choices=("no", "layers", "all"), default="no")
    given = parser.parse_args()

    grey = not given.colour
    photographs = read_photographs(given.photographs, grey=grey)
    print(f"{len(photographs)} images, {sum(p.size for p in photographs) / 1e6:.0f} million numbers", flush=True)
    held_out = read_photographs(given.validation, grey=grey)[: given.validate] if given.validation else None
    start = Network.load(given.start) if given.start else None
    begin = time.process_time()

    def report(now):
        psnr = "  ".join(f"{level}: {value:.3f}" for level, value in now.psnr.items())
        print(
            f"{now.done:6.1%}  step {now.step}  {now.seconds:.0f} s (processor {time.process_time() - begin:.0f} s)  "
            f"loss {now.loss:.4f}  non-zero {now.share:.1%}  PSNR {psnr}",
            flush=True,
        )
        now.network.save(given.out.with_suffix(".now.h5"))

    network = train(
        photographs,
        n_atoms=given.atoms,
        n_layers=given.layers,
        stride=given.stride,
        sigma=given.sigma,
        seconds=given.seconds,
        steps=given.steps,
        batch=given.batch,
        crop=given.crop,
        rate=given.rate,
        tied=given.tied,
        network=start,
        validation=held_out,
        checkpoint=given.out.with_suffix(".state"),
        callback=report,
        every=given.every,
        rng=given.seed,
    )
    network.save(given.out, dtype=np.float16)
    if held_out:
        small = Network.load(given.out)
        print("stored, 1 view ", validate(small, held_out))
        print("stored, 8 views", validate(small, held_out, n_views=8))


if __name__ == "__main__":
    main()
