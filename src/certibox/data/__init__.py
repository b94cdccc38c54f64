"""Images as uint8 tensors: from arrays, data sets, an `.npz`, an image folder, Hugging Face or scikit-learn's digits.

Storage is 8 bits a pixel; everything that leaves for a model (`Images.floats`, `augment`) is float in [0, 1].

- `images`: `Images`, `images_from_arrays`, images held out, means over images;
- `sources`: `load_images`, which knows every source;
- `items`: what is in memory, or handed out one by one by an object such as a `torch.utils.data.Dataset`;
- `rows`: Hugging Face datasets;
- `decoding`: one image at a time, from a file, Pillow or an array;
- `stl10`: the binary files of STL-10, for `load_images`;
- `restricted_imagenet`: `load_restricted_imagenet`, ten super-classes of ImageNet-1k;
- `augmentation`: `augment`, and the policies `AUGMENTATIONS`.
"""

from __future__ import annotations

from certibox.data.augmentation import AUGMENTATIONS, augment
from certibox.data.images import Images, Index, View, held_out, images_from_arrays, mean_over
from certibox.data.items import MapStyle
from certibox.data.restricted_imagenet import load_restricted_imagenet
from certibox.data.sources import ImageSource, load_images

__all__ = [
    "AUGMENTATIONS",
    "ImageSource",
    "Images",
    "Index",
    "MapStyle",
    "View",
    "augment",
    "held_out",
    "images_from_arrays",
    "load_images",
    "load_restricted_imagenet",
    "mean_over",
]
