"""Settings of the paper's trainings, a file a data set: ``hcast-zoo train --recipe cub``."""
