"""The sweep: how each picture of a data set excites and inhibits features, kept on disk."""
