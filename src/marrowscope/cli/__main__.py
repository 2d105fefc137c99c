"""`python -m marrowscope.cli`."""

from marrowscope.cli import main

main()
