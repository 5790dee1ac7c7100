"""Where mmengine, when a config inherits from ``hcast_zoo::...``, looks for our registries; needs mmpretrain."""

import importlib

importlib.import_module("hcast_zoo.integrations.mmpretrain.registry")
