"""Pictures: CLIP, unCLIP, and the figures of the chapters."""
