"""The attribution atlas: a map of the ways in which pictures excite and inhibit a feature."""
