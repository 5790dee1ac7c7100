"""``python -m hcast_zoo``, for `accelerate launch` and `torchrun`."""

from .cli import main

if __name__ == "__main__":
    raise SystemExit(main())
