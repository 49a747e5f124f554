"""``python -m claude_force_orchestrator.cli`` is ``claude-force``."""

from . import main

main()
