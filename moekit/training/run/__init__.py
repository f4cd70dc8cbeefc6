"""A whole run: its folder, how it is prepared, trained, resumed, compared with a dense baseline, and summarised."""
