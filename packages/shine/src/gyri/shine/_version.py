"""Version of gyri-shine; `nox -s release` bumps it."""

__version__ = "0.1.0"
