"""Certify an image, or a data set row by row; resume to the batch; merge shards; replay what is stored.

- `noise`: the noise of smoothing, in blocks that nothing but the seed decides;
- `images`: what is certified, and the units of sigma and radii;
- `smoothing`: the smoothed classifier, which knows only a callable;
- `asking`: how the callable is asked; `alone`: whether it answers each image alone;
- `sampling`: how many votes a certificate may take, checked once;
- `certificate`: what votes prove about one image;
- `dataset`: a data set certified row by row; `votes`: the votes of the image under way; `canaries`: the first answers;
- `spending`: whose votes are bought next, where a number of queries is to certify as many images as possible;
- `stored`: what follows from stored votes without a query: another alpha, replay, merge;
- `sigma`: a sigma for each radius, chosen on validation images;
- `pilot`: what a few certificates let one expect of those to come.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # see __init__.pyi
