"""The validity report: how far attributions and pictures can be believed."""
