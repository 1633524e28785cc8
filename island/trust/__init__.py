"""Keys, chains of admissions, tokens, roles and the journal."""
