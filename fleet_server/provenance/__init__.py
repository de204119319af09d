"""Where a release comes from: who signed what was pushed, and what was made of it."""
