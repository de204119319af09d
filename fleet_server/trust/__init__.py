"""Whom devices may believe: what exists (a TUF repository) and who says what to run (keys)."""
