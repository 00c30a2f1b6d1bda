"""Volumes and the backends that freeze them."""
