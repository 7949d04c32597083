"""`python -m r2d_edge`: the command line."""

from r2d_edge.cli import main

main()
