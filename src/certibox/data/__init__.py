"""Images as uint8 tensors: from arrays, data sets, an `.npz`, an image folder, Hugging Face or scikit-learn's digits.

Storage is 8 bits a pixel; everything that leaves for a model (`Images.floats`, `augment`) is float in [0, 1].

- `pixels`: what counts as images at every border, for those that know no data set;
- `images`: `Images`, images held out, means over images;
- `arrays`: `images_from_arrays`, channels, labels;
- `sources`: `load_images`, which knows every source; `asked`: what it is asked for;
- `folders`: image folders, their splits and classes; `metadata`: labels in a file beside the images;
- `files`: one file of arrays, one picture, one table;
- `items`: what is in memory, or handed out one by one by an object such as a `torch.utils.data.Dataset`;
- `rows`: Hugging Face datasets; `labels`: names of classes and columns;
- `decoding`: one image at a time, from a file, Pillow or an array;
- `digits`: scikit-learn's digits;
- `stl10`: the binary files of STL-10, for `load_images`;
- `restricted_imagenet`: `load_restricted_imagenet`, ten super-classes of ImageNet-1k;
- `augmentation`: `augment`, and the policies `AUGMENTATIONS`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
