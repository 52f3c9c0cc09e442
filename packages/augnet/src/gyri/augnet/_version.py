"""Version of gyri-augnet; `nox -s release` bumps it."""

__version__ = "0.1.0"
