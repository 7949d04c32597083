"""Whether a bundle may be trusted here: its author's signature, a first load apart, its golden inputs, its machine."""
