"""Files of notes in, one file of decisions out; what is decided survives whatever stops the work.

`windows` cuts the input into micro-batches that depend on the input alone, `run` decides them and writes each
to the `journal`, `finish` makes the file of decisions from the journal by an `output` writer, and `files` is the one
door to the disk. `resume` reads what an earlier run left, `tuning` chooses workers and threads, `audited` keeps the
audit log; `cluster` does the same work on many machines.
"""
