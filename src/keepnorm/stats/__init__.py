"""The statistics of data sets: files of every kind, in bounded memory."""
