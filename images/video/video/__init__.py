"""The video pod: the playlist copied to the pod's own disk, and nginx that serves it."""
