"""Experiments of the TV paper; importing the module registers them with `gyri.reproduce`."""

from . import bold as bold
from . import conditioning as conditioning
from . import denoising as denoising
from . import inner_error as inner_error
from . import iterations as iterations
from . import learning as learning
