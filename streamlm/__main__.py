"""`python -m streamlm` is the command line."""

from streamlm.cli.app import main

main()
