"""The smallest working plug-in: copy this folder to start a method."""
