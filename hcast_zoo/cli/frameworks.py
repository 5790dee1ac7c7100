"""The commands that run frameworks' own programs: mm-train and timm."""

import argparse
import importlib
import sys
import traceback

from ..common.extras import needs_extra


def mm_train(args: argparse.Namespace) -> int:
    """Train by an mmpretrain config."""
    with needs_extra("mmpretrain", "mmpretrain's configs"):
        training = importlib.import_module("hcast_zoo.integrations.mmpretrain.train")
    print(training.train(args.config, args.work_dir, args.resume, args.cfg_options))
    return 0


def timm(args: argparse.Namespace) -> int:
    """Run a timm script; its errors are shown as Python shows them."""
    scripts = importlib.import_module("hcast_zoo.integrations.timm.scripts")
    path = scripts.find_script(args.script)
    try:
        scripts.run_script(path, args.arguments)
    except Exception:
        traceback.print_exc(file=sys.stderr)
        return 1
    return 0
