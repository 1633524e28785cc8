"""The operator API, `/api/v1/...` on the user port; one module per subject."""
