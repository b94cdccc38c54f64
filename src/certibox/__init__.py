"""certibox: certified adversarial robustness for models that can only be queried.

A black box and unlabelled images go in; a defended, certified model comes out; every query is counted.
"""

from certibox import confidence, errors, networks, reconstruction, report
from certibox.autoencoders import load_autoencoder, save_autoencoder
from certibox.blackbox import BlackBox, BoxSpec, as_blackbox
from certibox.certificate import Certificate, Prediction
from certibox.certification.dataset import certify_dataset
from certibox.certification.replay import at_alpha, merge
from certibox.data import Images, images_from_arrays, load_images, load_restricted_imagenet
from certibox.estimators import CGE, RGE, GradientEstimator, Guided, Orthogonal, Subset
from certibox.networks import Autoencoder, fitting_autoencoder
from certibox.queries.client import QueryClient
from certibox.queries.fingerprint import Fingerprint
from certibox.released import import_authors
from certibox.report import certified_accuracy, certified_accuracy_interval
from certibox.saved import Defense, load_defense
from certibox.schedules import SCHEDULES, Phase, Schedule, one_cycle, paper_finetune, paper_scratch
from certibox.sequential import AlphaSpending, EProcess
from certibox.smoothing import SmoothedClassifier
from certibox.supervised import pretrain_autoencoder, train_classifier
from certibox.training import train

__all__ = [
    "CGE",
    "RGE",
    "SCHEDULES",
    "AlphaSpending",
    "Autoencoder",
    "BlackBox",
    "BoxSpec",
    "Certificate",
    "Defense",
    "EProcess",
    "Fingerprint",
    "GradientEstimator",
    "Guided",
    "Images",
    "Orthogonal",
    "Phase",
    "Prediction",
    "QueryClient",
    "Schedule",
    "SmoothedClassifier",
    "Subset",
    "as_blackbox",
    "at_alpha",
    "certified_accuracy",
    "certified_accuracy_interval",
    "certify_dataset",
    "confidence",
    "errors",
    "fitting_autoencoder",
    "images_from_arrays",
    "import_authors",
    "load_autoencoder",
    "load_defense",
    "load_images",
    "load_restricted_imagenet",
    "merge",
    "networks",
    "one_cycle",
    "paper_finetune",
    "paper_scratch",
    "pretrain_autoencoder",
    "reconstruction",
    "report",
    "save_autoencoder",
    "train",
    "train_classifier",
]
