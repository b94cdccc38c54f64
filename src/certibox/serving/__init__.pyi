from .asgi import app as app
from .terms import Limits as Limits
