"""Image parameters, the views that are optimised, and the randomness of both."""
