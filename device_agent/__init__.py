"""The agent on a device: it trusts nobody without a signature, and is never without a model."""
