"""Livy's wire types, the rules of its REST API, and a typed client."""
