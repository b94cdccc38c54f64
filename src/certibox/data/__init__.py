"""Images as uint8 tensors: from arrays, an `.npz`, an image folder, Hugging Face datasets or scikit-learn's digits.

Storage is 8 bits a pixel; everything that leaves for a model (`Images.floats`, `augment`) is float in [0, 1].

- `images`: `Images`, `images_from_arrays`, images held out, means over images;
- `sources`: `load_images`, and a reader for each kind of source;
- `stl10`: the binary files of STL-10, for `load_images`;
- `restricted_imagenet`: `load_restricted_imagenet`, ten super-classes of ImageNet-1k;
- `augmentation`: `augment`, and the policies `AUGMENTATIONS`.
"""

from __future__ import annotations

from certibox.data.augmentation import AUGMENTATIONS, augment
from certibox.data.images import Images, Index, View, held_out, images_from_arrays, mean_over
from certibox.data.restricted_imagenet import load_restricted_imagenet
from certibox.data.sources import load_images

__all__ = [
    "AUGMENTATIONS",
    "Images",
    "Index",
    "View",
    "augment",
    "held_out",
    "images_from_arrays",
    "load_images",
    "load_restricted_imagenet",
    "mean_over",
]
