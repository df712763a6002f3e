"""`python -m fedsim`: the command line."""

from fedsim.app.cli.main import main

main()
