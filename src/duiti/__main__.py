"""`python -m duiti` is the command `duiti`."""

from duiti.cli import main

if __name__ == "__main__":
    main()
