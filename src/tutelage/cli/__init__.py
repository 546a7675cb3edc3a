"""The command line: a config in, a study out; a run in, an artefact and its verdict out."""

from tutelage.cli.app import app, main

__all__ = ["app", "main"]
