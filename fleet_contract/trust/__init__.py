"""Who may say what to run: envelopes, the keyset, directives and the ordered checks on them."""
