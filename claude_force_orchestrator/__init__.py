"""An async orchestrator of Claude agents that answers repeats from a cache."""
