"""`python -m lorapod`: the command, where its script is not on the path."""

from lorapod.cli.main import run

if __name__ == "__main__":
    run()
