"""Ablations: one file, one question, answered in the harness that everything else is measured in."""
