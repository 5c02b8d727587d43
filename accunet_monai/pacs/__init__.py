"""Batch inference against a hospital's PACS: receiving, jobs, delivery. Needs the extra ``pacs``."""
