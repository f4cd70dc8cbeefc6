"""Steps with a non-finite (NaN or infinite) loss or gradient: what to do about them, and which module caused them."""
