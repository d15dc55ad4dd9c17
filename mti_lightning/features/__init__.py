"""Features: what they are called, how they are read, and what part of a picture they see."""
