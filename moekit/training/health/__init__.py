"""Steps whose loss or gradients are NaN or infinite: where they came from, and what is done about them."""
