"""Running models: sessions, the slot that swaps them under load, the probe, shadow, telemetry."""
