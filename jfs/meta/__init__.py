"""Metadata: names, attributes and slice records, in a transactional store."""
