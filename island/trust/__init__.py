"""Keys, admissions, tokens, roles and the journal: who may do what."""
