"""Statistics that the studies in benchmarks/ share. The rules are in RULES.md."""
