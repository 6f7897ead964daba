"""Moved: dgproxy.wire.refusals (temporary re-export)."""

from dgproxy.wire.refusals import *  # noqa: F403
