"""Before anything runs: what a study will do and cost, and what would go wrong."""
