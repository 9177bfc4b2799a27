"""`python -m iris_cli`: the command `iris`, as torchrun starts it."""

from iris_cli.commands.app import main

if __name__ == "__main__":
    main()
