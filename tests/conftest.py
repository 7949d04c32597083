import os

# No test asks a hub; a test that tries fails at once instead of waiting for a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Each tiny bundle is new to this machine: a trial load of each in a child process is for the tests of that alone.
os.environ.setdefault("R2D_EDGE_TRUST", "1")
