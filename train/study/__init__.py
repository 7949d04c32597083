"""The study: methods × sources × sizes × seeds over data sets, trained once and compared from small result files.

`spec` reads a study file into cells, `run` trains and evaluates them (`parallel` several at once, `estimate` says
how long), `results` keeps what a cell leaves behind (JSON, no texts), `curves` reads how it learned, `figures` and
`tables` compare, `plots` draw, `own_data` makes a study of one data file, `command` is the command line's face of
it all.
"""
