"""`python -m streamlm` is the command line."""

from streamlm.cli import main

main()
