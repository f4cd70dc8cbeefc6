"""Which module made a step non-finite, what components return, and in which component an exception was raised."""
