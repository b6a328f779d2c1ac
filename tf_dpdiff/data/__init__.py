"""Where images come from (datasets holds the types, digits and .npz files; folders, tables, dicom, npy, tfrecords,
tfds_images and camelyon17 are one source each; procedural draws them; public makes any source fit for public
pre-training), what a folder of them is seen to hold (survey), how files are listed (listed, table), decoded (decoding)
and made alike (images), what is wrong with them (problems) and which are held out (splitting), what is taken for
arrays, classes and people (arrays, classes, owner_names), how views of images are varied (augmentation), how batches
are made (pipelines)."""
