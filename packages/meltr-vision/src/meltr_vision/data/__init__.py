"""The data of a run: official files, folders of images, and batches of images in device memory."""
