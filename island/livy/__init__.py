"""Livy's wire types, its REST rules, and a typed client of it."""
