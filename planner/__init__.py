"""Deciding: the linear program, the search, bounds, plans, reports and the command line."""
