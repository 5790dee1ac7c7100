"""A process without the rights of root, for tests of what may not be read or written."""

import ctypes


def drop_rights() -> None:
    """Drop root's capabilities but keep its user: another user could not read Python's own files under /root."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3, this process
    if ctypes.CDLL(None).capset(header, none):
        raise OSError("cannot drop the rights of root")
