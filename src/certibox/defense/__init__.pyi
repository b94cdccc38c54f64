from .autoencoders import load_autoencoder as load_autoencoder
from .autoencoders import reconstruction_mse as reconstruction_mse
from .autoencoders import save_autoencoder as save_autoencoder
from .pipeline import RobustPipeline as RobustPipeline
from .released import import_authors as import_authors
from .saved import Defense as Defense
from .saved import load_defense as load_defense
