"""``Annotated``, without the library that the newer Pythons do not need for it: ``--help`` would wait for it."""

import sys

if sys.version_info >= (3, 9):
    from typing import Annotated
else:
    from typing_extensions import Annotated

__all__ = ["Annotated"]
