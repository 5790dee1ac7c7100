"""Pictures of labels that the packaged weights know; installed as hcast_zoo.pictures for the examples of the demo."""
