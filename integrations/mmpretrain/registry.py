"""The registries of the scope ``hcast_zoo``.

Our classes are in mmpretrain's registries. But configs that inherit from ``hcast_zoo::...`` get the scope
``hcast_zoo``, and mmengine then looks for registries of that scope. These are empty and fall back to mmpretrain's.
"""

import mmpretrain.registry
from mmengine.registry import Registry

for _parent in list(vars(mmpretrain.registry).values()):
    if isinstance(_parent, Registry) and _parent.scope == "mmpretrain":
        Registry(_parent.name, parent=_parent, scope="hcast_zoo", locations=[f"{__package__}.hcast"])
