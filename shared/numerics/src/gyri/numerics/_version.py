"""Version of gyri-numerics; `nox -s release` bumps it."""

__version__ = "0.2.5"
