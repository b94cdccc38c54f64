"""`certibox import-authors`: networks that others have trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from certibox.commands.fields import option
from certibox.commands.printing import OUT
from certibox.data import load_images
from certibox.defense.autoencoders import FILE, reconstruction_mse, save_autoencoder
from certibox.defense.released import import_authors
from certibox.storage.files import require_place
from certibox.storage.tensors import is_tensors


@dataclass(frozen=True)
class ImportAuthors:
    """Import an autoencoder that the paper's authors released, for `train --autoencoder`.

    example: certibox import-authors --encoder cifar10_ae192_encoder.pth.tar --decoder cifar10_ae192_decoder.pth.tar \\
                 --out runs/authors
    """

    encoder: str = option("the authors' .pth.tar file of the encoder; tensors and plain values are read, no code")
    decoder: str = option("the authors' .pth.tar file of the decoder")
    out: str = option("directory for autoencoder.safetensors and autoencoder.json")
    data: str | None = option("images to reconstruct, as in `train`; prints the mean squared error", None)
    split: str = option("which split of the data", "test")
    limit: int | None = option("use only the first N images", None)


def run_import_authors(options: ImportAuthors) -> None:
    """`certibox import-authors`."""
    require_place(Path(options.out) / FILE, is_tensors)  # before the work
    autoencoder, facts = import_authors(options.encoder, options.decoder)
    OUT.print(f"{autoencoder.spec['name']}: images {autoencoder.image_shape}, embedding of {autoencoder.d_z}")
    if options.data is not None:
        images = load_images(options.data, options.split, limit=options.limit)
        error = reconstruction_mse(autoencoder, images)
        OUT.print(f"reconstruction MSE: {error:.6f} a pixel, over {len(images):,} images of {images.name}")
    else:
        OUT.print("not tried on images: --data DATA prints its reconstruction MSE")
    OUT.print(f"saved {save_autoencoder(autoencoder, options.out, facts)}")
