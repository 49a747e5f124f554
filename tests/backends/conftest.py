"""What all tests of backends share: assertions of the shared suite that say what they compared."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("accounting")
