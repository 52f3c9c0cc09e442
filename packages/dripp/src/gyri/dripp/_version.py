"""Version of gyri-dripp; `nox -s release` bumps it."""

__version__ = "0.2.0"
