"""The demo: a fleet on this machine, a good rollout, a bad one, and what happened."""
