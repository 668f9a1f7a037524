"""`python -m streamlm` is the command line."""

from streamlm.cli.start import main

main()
