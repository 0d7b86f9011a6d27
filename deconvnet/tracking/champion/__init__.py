"""Which versions of a registered model are a workspace's own, and how the alias of the one in use, the champion, is moved."""
