"""`python -m nxm` is the command `nxm`."""

from nxm.cli import main

main()
