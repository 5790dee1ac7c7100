"""Give changed configs to every interface that reads one, and measure the memory that each takes.

    python -m tests.attacks.configs --inputs 10000 [core timm transformers processor mmpretrain]

The memory budget is set to 1 GiB: a config is either refused with a clear message, or its model is built and reads one
picture within that budget. Rows go to docs/reliability.md; fuzz.py explains what counts as a finding.
"""

import argparse
import functools
import os
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HCAST_ZOO_MEMORY_GIB"] = "1"

from tests.attacks import fuzz
from tests.attacks.interfaces import INTERFACES
from tests.attacks.readers import READERS


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interfaces", nargs="*", metavar="INTERFACE", help=f"of {', '.join(INTERFACES)} (all)")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each interface (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="input N alone, of one interface, with its traceback")
    parser.add_argument("--docs", type=Path, default=Path("docs"), help="folder of the report (%(default)s)")
    args = parser.parse_args()
    if unknown := set(args.interfaces) - set(INTERFACES):
        parser.error(f"no interface {', '.join(unknown)}: expected {', '.join(INTERFACES)}")

    READERS.update(INTERFACES)
    names = args.interfaces or list(INTERFACES)
    if args.only is not None:
        return fuzz.show(names[0], args.seed, args.only)

    findings = 0
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            INTERFACES[name](Path(folder)).warm()
        result = fuzz.fuzz(name, args.inputs, functools.partial(fuzz.child, name, args.seed))
        findings += fuzz.write(INTERFACES[name].what, name, args, result)

    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
