"""`python -m dino_path` is `dino-path`: for torchrun, and for jobs that must use the Python that submitted them."""

from dino_path.cli import main

if __name__ == "__main__":
    main()
