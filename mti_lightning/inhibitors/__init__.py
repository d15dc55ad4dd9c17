"""`mti inhibitors`: which units keep a feature silent, proven by silencing them."""
