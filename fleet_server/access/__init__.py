"""Who may use the operators' API."""
