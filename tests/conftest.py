import os

# No test asks a hub; a test that tries fails at once instead of waiting for a time-out.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
