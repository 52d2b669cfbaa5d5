"""`python -m effectonce` is `effectonce`."""

from effectonce.cli import main

main()
