"""Every run kept: a folder of files each, which are the truth, and a SQLite index made from them."""
