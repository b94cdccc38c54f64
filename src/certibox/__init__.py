"""certibox: certified adversarial robustness for models that can only be queried.

A black box and unlabelled images go in; a defended, certified model comes out; every query is counted.
"""

from certibox import confidence, errors, networks
from certibox.blackbox import BlackBox, BoxSpec, as_blackbox
from certibox.config import SCHEDULES, Phase, Schedule, one_cycle, paper_finetune, paper_scratch
from certibox.data import Images, images_from_arrays, load_images
from certibox.estimators import CGE, RGE, GradientEstimator, Orthogonal
from certibox.networks import Autoencoder, fitting_autoencoder
from certibox.pipeline import Defense, load_defense
from certibox.query import Fingerprint, QueryClient
from certibox.smoothing import Certificate, Prediction, SmoothedClassifier
from certibox.training import pretrain_autoencoder, train
