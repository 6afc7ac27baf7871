"""Should this auxiliary loss be added? Short trainings with and without it, gradients on other examples, and prices."""
