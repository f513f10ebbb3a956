"""What asv discovers. A class that compares with a peer measures once; its many `track_*` read that record."""
