"""Files of notes in, one file of decisions out; what is decided survives whatever stops the work.

`windows` cuts the input into micro-batches that depend on the input alone, `run` decides them and writes each
to the `journal`, `output` makes the file of decisions from the journal, and `files` is the one door to the disk.
"""
