"""What asv discovers. A class that compares with a peer measures once, in `setup_cache`, and many `track_*` read the record."""
