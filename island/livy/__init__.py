"""Livy's wire types and a typed client."""
