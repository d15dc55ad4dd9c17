"""From a picture to an answer: what excites and what inhibits the classes that a network says."""
