"""The workshop: data, warm start, pre-training, stages 1 and 2, evaluation. Run `python -m train`."""
