"""The press: from a PyTorch checkpoint to a proven bundle. Run `python -m convert`."""
