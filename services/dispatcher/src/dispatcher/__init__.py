"""Publishes jobs one question batch at a time: ``dispatcher.progress`` decides, the rest carries out."""
