"""``smartpipe doctor --costs``: an estimate of the monthly bill of AWS for declared services."""
