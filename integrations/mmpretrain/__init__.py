"""H-CAST for mmpretrain 1.2: backbone, head, loss, data, metric, configs and inferencer.

`import hcast_zoo` registers all of it with mmpretrain as soon as mmpretrain is imported; see :mod:`.hcast`. This file
imports nothing, because mmengine may need it only to find the configs beside it.
"""
