"""The promises of keepnorm, one file for each kind."""
