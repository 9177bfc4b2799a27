"""The jobs of iris, one module each: typed, without Typer and without printing.

The command line and Python users call the same functions; what a job has to say it returns or
raises (iris_cli.errors).
"""
