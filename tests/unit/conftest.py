"""What is written in C is tested where it is: without a compiler there is nothing to test."""

from effectonce.native import native

collect_ignore = [] if native is not None else ["test_native.py"]
