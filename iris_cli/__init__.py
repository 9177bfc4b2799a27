"""iris: segment 3-D medical images from examples.

Python users call `iris_cli.workflows`; the command line does the same.
"""

__version__ = "0.1.0"
