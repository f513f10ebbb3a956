"""The readers: one file for each family of formats, one table that names them."""
