"""The data of a run: official files, folders of images, and batches of resident images."""
