"""``make release``: build the files of a release, and check everything that must be true before you publish them."""
