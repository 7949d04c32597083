"""`python -m train`."""

from train.cli import run

run()
